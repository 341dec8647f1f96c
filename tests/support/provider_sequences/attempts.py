"""Several attempts to pay one order: sessions, intents and providers."""

from typing import Final

from tests.support.provider_sequences import sources
from tests.support.provider_sequences.sequence import (
    ADYEN,
    BANK_TRANSFER,
    DAY,
    LATE,
    MOLLIE,
    NOT_CURRENT,
    PAYPAL,
    REFUSED,
    STRIPE,
    UNKNOWN_WORD,
    Sequence,
    event,
)

ATTEMPTS: Final = (
    Sequence(
        "Stripe: the first session's expiry cancels its intent, while the second session runs",
        sources.STRIPE_SESSIONS,
        (
            event("pending", STRIPE, "S1"),
            event("requires_action", intent="pi1"),
            event("pending", STRIPE, "S2"),
            event("processing", session="S2"),
            event("canceled", intent="pi1").answered(NOT_CURRENT),
        ),
        "PROCESSING",
    ),
    Sequence(
        "Stripe: an old attempt's start and failure, delivered after another is authorized",
        sources.STRIPE_DELIVERY,
        (
            event("pending", STRIPE, "S1", "pi1"),
            event("authorized", STRIPE, "S2", "pi2"),
            event("pending", STRIPE, "S1", "pi1").answered(NOT_CURRENT),
            event("failed", STRIPE, "S1", "pi1").answered(NOT_CURRENT),
        ),
        "AUTHORIZED",
    ),
    Sequence(
        "Stripe: the right intent before the session that has it",
        sources.STRIPE_DELIVERY,
        (
            event("pending", STRIPE, "S1"),
            event("paid", intent="pi2"),
            event("paid", session="S2", intent="pi2"),
        ),
        "PAID",
    ),
    Sequence(
        "Adyen: the refusal of the first attempt comes after the second is authorized",
        sources.ADYEN_ISSUE_2999,
        (
            event("pending", ADYEN, "S1", "p1"),
            event("authorised", session="S1", intent="p2"),
            event("refused", session="S1", intent="p1").answered(NOT_CURRENT),
        ),
        "AUTHORIZED",
    ),
    Sequence(
        "Stripe: another provider's failure names no ids, while a direct debit runs",
        sources.STRIPE_SEPA,
        (
            event("processing", STRIPE, "S1"),
            event("failed", PAYPAL).answered(NOT_CURRENT),
        ),
        "PROCESSING",
    ),
    Sequence(
        "Stripe: an unknown word, then an abandoned session expires",
        sources.STRIPE_SESSIONS,
        (
            event("in_review", STRIPE, "S2"),
            event("expired", session="S1").answered(NOT_CURRENT),
        ),
        "UNKNOWN",
    ),
    Sequence(
        "Mollie: one order, two payments; the second pays before the order expires",
        sources.MOLLIE_ORDERS,
        (
            event("open", MOLLIE, "ord1", "tr1"),
            event("failed", intent="tr1"),
            event("open", intent="tr2"),
            event("paid", intent="tr2"),
            event("expired", session="ord1").answered(REFUSED),
        ),
        "PAID",
    ),
    Sequence(
        "Mollie: one order, two payments; the order expires",
        sources.MOLLIE_ORDERS,
        (
            event("open", MOLLIE, "ord1", "tr1"),
            event("failed", intent="tr1"),
            event("open", intent="tr2"),
            event("expired", session="ord1"),
        ),
        "EXPIRED",
    ),
    Sequence(
        "Stripe: a second session is opened, and pays, while a direct debit runs",
        sources.STRIPE_SEPA,
        (
            event("processing", STRIPE, "S1"),
            event("pending", STRIPE, "S2").answered(NOT_CURRENT),
            event("paid", session="S2", intent="pi2"),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: an unknown word does not open an authorization to an old attempt",
        sources.STRIPE_HOLD,
        (
            event("authorized", STRIPE, "S2", "pi2"),
            event("in_review", intent="pi2").answered(UNKNOWN_WORD),
            event("pending", STRIPE, "S1", "pi1").answered(NOT_CURRENT),
            event("failed", session="S1", intent="pi1").answered(NOT_CURRENT),
        ),
        "AUTHORIZED",
    ),
    Sequence(
        "Stripe: an intent that is neither the old one nor known is cancelled",
        sources.STRIPE_SESSIONS,
        (
            event("pending", STRIPE, "S1"),
            event("requires_action", intent="pi1"),
            event("pending", STRIPE, "S2"),
            event("canceled", intent="pi0").answered(NOT_CURRENT),
        ),
        "PENDING",
    ),
    Sequence(
        "Stripe: the current session fails, over the intent of the session before",
        sources.STRIPE_SESSIONS,
        (
            event("requires_action", STRIPE, "S1", "pi1"),
            event("pending", STRIPE, "S2"),
            event("failed", STRIPE, "S2", "pi2"),
        ),
        "FAILED",
    ),
    Sequence(
        "Stripe: the start of an old session is delivered again",
        sources.STRIPE_DELIVERY,
        (
            event("pending", STRIPE, "S1").at(10),
            event("pending", session="S2").at(20),
            event("pending", session="S1").at(10).answered(LATE),
            event("failed", session="S2", intent="pi2").at(30),
        ),
        "FAILED",
    ),
    Sequence(
        "Stripe: the second session pays, and its intent is named by the refund",
        sources.STRIPE_SESSIONS,
        (
            event("requires_action", STRIPE, "S1", "pi1"),
            event("pending", session="S2"),
            event("paid", session="S2"),
            event("refunded", intent="pi2"),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: the first session expires after the second has paid",
        sources.STRIPE_SESSIONS,
        (
            event("unpaid", STRIPE, "cs_1"),
            event("unpaid", session="cs_2"),
            event("paid", session="cs_2", intent="pi_2"),
            event("expired", session="cs_1").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_session_id": "cs_2"},
    ),
    Sequence(
        "Stripe: a session expires a day after the order was paid with another provider",
        sources.STRIPE_ISSUE_5812,
        (
            event("unpaid", STRIPE, "cs_1").at(0),
            event("failed", session="cs_1", intent="pi_1").at(60),
            event("COMPLETED", PAYPAL, intent="O1", transaction="C1").at(300),
            event("expired", STRIPE, "cs_1").at(DAY).answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_provider": PAYPAL, "payment_intent_id": "O1"},
    ),
    Sequence(
        "Stripe: a session expires while a bank transfer is awaited",
        sources.STRIPE_ISSUE_5935,
        (
            event("unpaid", STRIPE, "cs_1"),
            event("pending", BANK_TRANSFER),
            event("expired", STRIPE, "cs_1").answered(NOT_CURRENT),
            event("paid", BANK_TRANSFER, transaction="b1"),
        ),
        "PAID",
        {"payment_provider": BANK_TRANSFER},
    ),
    Sequence(
        "Stripe: the customer pays in the older of two sessions",
        sources.STRIPE_ISSUE_895,
        (
            event("unpaid", STRIPE, "cs_1"),
            event("unpaid", session="cs_2"),
            event("paid", session="cs_1", intent="pi_1"),
            event("expired", session="cs_2").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_session_id": "cs_1", "payment_intent_id": "pi_1"},
    ),
    Sequence(
        "Stripe and PayPal: the customer goes to PayPal and back, and pays by card",
        sources.STRIPE_SESSIONS,
        (
            event("unpaid", STRIPE, "cs_1"),
            event("CREATED", PAYPAL, intent="O1"),
            event("paid", STRIPE, "cs_1", "pi_1"),
            event("VOIDED", PAYPAL, intent="O1").answered(NOT_CURRENT),
        ),
        "PAID",
        {
            "payment_provider": STRIPE,
            "payment_session_id": "cs_1",
            "payment_intent_id": "pi_1",
        },
    ),
    Sequence(
        "Stripe: two intents are authorized; the first is captured, the second cancelled",
        sources.STRIPE_HOLD,
        (
            event("requires_capture", STRIPE, intent="pi_1"),
            event("requires_capture", STRIPE, intent="pi_2"),
            event("succeeded", intent="pi_1"),
            event("canceled", intent="pi_2").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_intent_id": "pi_1"},
    ),
    Sequence(
        "Stripe: two intents are authorized; the first is cancelled, the second captured",
        sources.STRIPE_HOLD,
        (
            event("requires_capture", STRIPE, intent="pi_1"),
            event("requires_capture", STRIPE, intent="pi_2"),
            event("canceled", intent="pi_1").answered(NOT_CURRENT),
            event("succeeded", intent="pi_2"),
        ),
        "PAID",
        {"payment_intent_id": "pi_2"},
    ),
    Sequence(
        "Stripe: a new session, and nothing yet of its intent, when the old intent pays",
        sources.STRIPE_SESSIONS,
        (
            event("requires_action", STRIPE, "cs_1", "pi_1"),
            event("unpaid", session="cs_2"),
            event("succeeded", intent="pi_1"),
            event("expired", session="cs_2").answered(REFUSED),
        ),
        "PAID",
        {"payment_intent_id": "pi_1"},
    ),
    Sequence(
        "Adyen: an offer is closed after another payment is authorized",
        sources.ADYEN_OFFER_CLOSED,
        (
            event("received", ADYEN, intent="psp1").at(0),
            event("authorised", ADYEN, intent="psp2").at(300),
            event("OFFER_CLOSED", ADYEN, intent="psp1").at(3600).answered(NOT_CURRENT),
        ),
        "AUTHORIZED",
        {"payment_intent_id": "psp2"},
    ),
    Sequence(
        "Mollie: an old payment expires after the next was paid",
        sources.MOLLIE_ISSUE_1159,
        (
            event("open", MOLLIE, intent="tr_A"),
            event("open", MOLLIE, intent="tr_B"),
            event("paid", MOLLIE, intent="tr_B"),
            event("expired", MOLLIE, intent="tr_A").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_intent_id": "tr_B"},
    ),
    Sequence(
        "Mollie: an old payment expires while the next is pending",
        sources.MOLLIE_ISSUE_139,
        (
            event("pending", MOLLIE, intent="tr_1"),
            event("pending", MOLLIE, intent="tr_2"),
            event("expired", MOLLIE, intent="tr_1").answered(NOT_CURRENT),
            event("paid", MOLLIE, intent="tr_2"),
        ),
        "PAID",
        {"payment_intent_id": "tr_2"},
    ),
    Sequence(
        "Mollie: a payment expires a month after the money came by bank transfer",
        sources.MOLLIE_ISSUE_668,
        (
            event("open", MOLLIE, intent="tr_1").at(0),
            event("paid", BANK_TRANSFER, transaction="b1"),
            event("expired", MOLLIE, intent="tr_1").at(30 * DAY).answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_provider": BANK_TRANSFER},
    ),
    Sequence(
        "Mollie: a payment expires while the customer's bank transfer is on its way",
        sources.MOLLIE_ISSUE_424,
        (
            event("open", MOLLIE, intent="tr_1"),
            event("pending", BANK_TRANSFER),
            event("expired", MOLLIE, intent="tr_1").answered(NOT_CURRENT),
        ),
        "PENDING",
        {"payment_provider": BANK_TRANSFER},
    ),
)
