"""Ordinary payments, from their start to their end."""

from typing import Final

from tests.support.provider_sequences import sources
from tests.support.provider_sequences.sequence import (
    ADYEN,
    ALLSECURE,
    DAY,
    KLARNA,
    MOLLIE,
    NOT_CURRENT,
    PAYPAL,
    STRIPE,
    UNKNOWN_WORD,
    Sequence,
    event,
)

LIVES: Final = (
    Sequence(
        "Stripe: a session, then its payment",
        sources.STRIPE_FULFILLMENT,
        (
            event("pending", STRIPE, "S1"),
            event("paid", intent="pi1", transaction="txn1"),
        ),
        "PAID",
    ),
    Sequence(
        "AllSecure: one debit",
        sources.IXOPAY_CALLBACKS,
        (event("paid", ALLSECURE, intent="u1"),),
        "PAID",
    ),
    Sequence(
        "Stripe: a word without ids, then ids without a word",
        sources.STRIPE_FULFILLMENT,
        (
            event("paid", STRIPE, "S1", "pi1", "t1"),
            event("paid"),
            event(session="S1", intent="pi1"),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: the refund spells the provider in another way",
        sources.STRIPE_REFUNDS,
        (
            event("paid", STRIPE, "S1", "pi1"),
            event("refunded", "Stripe", intent="pi1"),
        ),
        "REFUNDED",
    ),
    Sequence(
        "AllSecure: each transaction's uuid as the intent",
        sources.IXOPAY_CALLBACKS,
        (
            event("authorized", ALLSECURE, intent="u1"),
            event("captured", intent="u2"),
            event("refunded", intent="u3"),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: an intent fails, is tried again, and pays",
        sources.STRIPE_INTENTS,
        (
            event("pending", STRIPE, "S1"),
            event("failed", intent="pi1"),
            event("processing", intent="pi1"),
            event("succeeded", intent="pi1"),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: 3-D Secure",
        sources.STRIPE_INTENTS,
        (
            event("pending", STRIPE, "cs_1").at(0),
            event("requires_action", intent="pi_1").at(10),
            event("processing", intent="pi_1").at(40),
            event("succeeded", intent="pi_1", transaction="ch_1").at(41),
        ),
        "PAID",
        {
            "payment_session_id": "cs_1",
            "payment_intent_id": "pi_1",
            "payment_transaction_id": "ch_1",
            "payment_status": "succeeded",
        },
    ),
    Sequence(
        "Stripe: a card is declined, and the intent goes back to wait for another",
        sources.STRIPE_INTENTS,
        (
            event("pending", STRIPE, "cs_1"),
            event("requires_action", intent="pi_1"),
            event("requires_payment_method", intent="pi_1"),
            event("succeeded", intent="pi_1"),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: a session is complete before its direct debit is paid",
        sources.STRIPE_FULFILLMENT,
        (
            event("unpaid", STRIPE, "cs_1"),
            event("complete", session="cs_1"),
            event("paid", session="cs_1", intent="pi_1"),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: a direct debit fails, and a second session pays",
        sources.STRIPE_FULFILLMENT,
        (
            event("unpaid", STRIPE, "cs_1"),
            event("complete", session="cs_1"),
            event("failed", session="cs_1", intent="pi_1"),
            event("unpaid", session="cs_2"),
            event("paid", session="cs_2", intent="pi_2"),
        ),
        "PAID",
        {"payment_session_id": "cs_2", "payment_intent_id": "pi_2"},
    ),
    Sequence(
        "Stripe: microdeposits do not arrive, and the debit fails",
        sources.STRIPE_ACH,
        (
            event("requires_action", STRIPE, intent="pi_1").at(0),
            event("processing", intent="pi_1").at(2 * DAY),
            event("failed", intent="pi_1").at(6 * DAY),
        ),
        "FAILED",
    ),
    Sequence(
        "Stripe: no capture, and the intent is cancelled after seven days",
        sources.STRIPE_HOLD,
        (
            event("requires_capture", STRIPE, intent="pi_1").at(0),
            event("canceled", intent="pi_1").at(7 * DAY),
        ),
        "CANCELLED",
    ),
    Sequence(
        "AllSecure: preauthorized and voided under the purchaseId",
        sources.ALLSECURE_GATEWAY,
        (
            event("PREAUTHORIZE", ALLSECURE, intent="p1", transaction="u1"),
            event("VOID", intent="p1", transaction="u2"),
        ),
        "CANCELLED",
        {"payment_transaction_id": "u2"},
    ),
    Sequence(
        "AllSecure: a debit is declined, and another is paid",
        sources.IXOPAY_CALLBACKS,
        (
            event("error", ALLSECURE, intent="u1"),
            event("DEBIT", ALLSECURE, intent="u2"),
            event("error", ALLSECURE, intent="u1").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_intent_id": "u2"},
    ),
    Sequence(
        "AllSecure: words and provider in several spellings",
        sources.ALLSECURE_GATEWAY,
        (
            event("Preauthorize", "AllSecure", intent="p1"),
            event(" capture ", "all-secure", intent="p1"),
            event("Partially Refunded", "ALL_SECURE", intent="p1"),
        ),
        "PARTIALLY_REFUNDED",
        {"payment_provider": "AllSecure", "payment_status": "Partially Refunded"},
    ),
    Sequence(
        "PayPal: created, approved, captured",
        sources.PAYPAL_ORDERS,
        (
            event("CREATED", PAYPAL, intent="O1"),
            event("PAYER_ACTION_REQUIRED", intent="O1"),
            event("APPROVED", intent="O1"),
            event("COMPLETED", intent="O1", transaction="C1"),
        ),
        "PAID",
        {"payment_intent_id": "O1", "payment_transaction_id": "C1"},
    ),
    Sequence(
        "PayPal: a capture is pending for review, and then denied",
        sources.PAYPAL_CAPTURES,
        (
            event("APPROVED", PAYPAL, intent="O1"),
            event("PENDING", intent="O1", transaction="C1"),
            event("DENIED", intent="O1", transaction="C1"),
        ),
        "FAILED",
    ),
    Sequence(
        "PayPal: an eCheck is pending for days, and clears",
        sources.PAYPAL_CAPTURES,
        (
            event("APPROVED", PAYPAL, intent="O1").at(0),
            event("PENDING", intent="O1", transaction="C1").at(10),
            event("COMPLETED", intent="O1", transaction="C1").at(5 * DAY),
        ),
        "PAID",
    ),
    Sequence(
        "PayPal: approved, but not captured in time",
        sources.PAYPAL_UNCAPTURED,
        (
            event("CREATED", PAYPAL, intent="O1").at(0),
            event("APPROVED", intent="O1").at(60),
            event("VOIDED", intent="O1").at(60 + 3 * 3600),
        ),
        "CANCELLED",
    ),
    Sequence(
        "Adyen: a redirect that the shopper does not complete",
        sources.ADYEN_OFFER_CLOSED,
        (
            event("received", ADYEN, intent="psp1"),
            event("OFFER_CLOSED", intent="psp1"),
        ),
        "EXPIRED",
    ),
    Sequence(
        "Adyen: an authorization expires before it is captured",
        sources.ADYEN_EXPIRE,
        (
            event("authorised", ADYEN, intent="psp1").at(0),
            event("expired", intent="psp1").at(28 * DAY),
        ),
        "EXPIRED",
    ),
    Sequence(
        "Adyen: authorized, rejected in review, cancelled",
        sources.ADYEN_ISSUE_2265,
        (
            event("authorised", ADYEN, intent="psp1"),
            event("cancelled", intent="psp1", transaction="m1"),
        ),
        "CANCELLED",
    ),
    Sequence(
        "Adyen: cancelOrRefund of a payment that was captured is a refund",
        sources.ADYEN_CANCEL_OR_REFUND,
        (
            event("authorised", ADYEN, intent="psp1"),
            event("captured", intent="psp1", transaction="m1"),
            event("refunded", intent="psp1", transaction="m2"),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Adyen: the payment that was refused at first is authorized after all",
        sources.ADYEN_ISSUE_3313,
        (
            event("refused", ADYEN, intent="psp1").at(10),
            event("authorised", intent="psp1").at(70),
        ),
        "AUTHORIZED",
    ),
    Sequence(
        "Mollie: a bank transfer is pending for days, and is paid",
        sources.MOLLIE_STATUS,
        (
            event("open", MOLLIE, intent="tr_1"),
            event("pending", intent="tr_1"),
            event("paid", intent="tr_1"),
        ),
        "PAID",
    ),
    Sequence(
        "Mollie: authorized, and cancelled before it is captured",
        sources.MOLLIE_CAPTURES,
        (
            event("open", MOLLIE, intent="tr_1"),
            event("authorized", intent="tr_1"),
            event("canceled", intent="tr_1"),
        ),
        "CANCELLED",
    ),
    Sequence(
        "Klarna: expired, and authorized anew within seven days",
        sources.KLARNA_STATES,
        (
            event("AUTHORIZED", KLARNA, intent="k1").at(0),
            event("EXPIRED", intent="k1").at(28 * DAY),
            event("AUTHORIZED", intent="k1").at(30 * DAY),
            event("CAPTURED", intent="k1", transaction="c1").at(31 * DAY),
        ),
        "PAID",
    ),
    Sequence(
        "Klarna: cancelled before it is captured",
        sources.KLARNA_CAPTURES,
        (
            event("AUTHORIZED", KLARNA, intent="k1"),
            event("CANCELLED", intent="k1"),
        ),
        "CANCELLED",
    ),
    Sequence(
        "Klarna: fraud review is pending, and ends in a rejection",
        sources.KLARNA_CAPTURES,
        (
            event("PENDING", KLARNA, intent="k1"),
            event("REJECTED", intent="k1"),
        ),
        "FAILED",
    ),
    Sequence(
        "Stripe: an unknown word does not stop a direct debit",
        sources.STRIPE_SEPA,
        (
            event("processing", STRIPE, "cs_1", "pi_1"),
            event("in_review", intent="pi_1").answered(UNKNOWN_WORD),
            event("succeeded", intent="pi_1"),
        ),
        "PAID",
    ),
)
