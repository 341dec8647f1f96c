"""Orders that are paid or authorized more than once."""

from typing import Final

from tests.support.provider_sequences import sources
from tests.support.provider_sequences.sequence import (
    ADYEN,
    ALLSECURE,
    BANK_TRANSFER,
    DUPLICATE,
    KLARNA,
    NOT_CURRENT,
    PAYPAL,
    STRIPE,
    Sequence,
    event,
)

DUPLICATES: Final = (
    Sequence(
        "Stripe: the card session pays, too, after a bank transfer that was entered by hand",
        sources.STRIPE_SESSIONS,
        (
            event("pending", STRIPE, "S1"),
            event("paid", BANK_TRANSFER, transaction="b1"),
            event("paid", session="S1", intent="pi1").answered(DUPLICATE),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: two sessions pay; only the second names its intent",
        sources.STRIPE_SESSIONS,
        (
            event("paid", STRIPE, "S1"),
            event("paid", STRIPE, "S2", "pi2").answered(DUPLICATE),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: an order that is paid is authorized a second time",
        sources.STRIPE_HOLD,
        (
            event("paid", STRIPE, "S1", "pi1"),
            event("authorized", STRIPE, "S2", "pi2").answered(DUPLICATE),
        ),
        "PAID",
    ),
    Sequence(
        "PayPal: the order's id, its capture's, and the order's again",
        sources.PAYPAL_ORDERS,
        (
            event("approved", PAYPAL, intent="O1"),
            event("completed", intent="C1"),
            event("completed", intent="O1").answered(DUPLICATE),
        ),
        "PAID",
    ),
    Sequence(
        "AllSecure: the preauthorization is delivered again before the refund",
        sources.IXOPAY_CALLBACKS,
        (
            event("authorized", ALLSECURE, intent="u1"),
            event("captured", intent="u2"),
            event("authorized", intent="u1").answered(DUPLICATE),
            event("refunded", intent="u3"),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: both of two sessions are paid, and the second payment is refunded",
        sources.STRIPE_ISSUE_895,
        (
            event("unpaid", STRIPE, "cs_1"),
            event("unpaid", session="cs_2"),
            event("paid", session="cs_2", intent="pi_2"),
            event("paid", session="cs_1", intent="pi_1").answered(DUPLICATE),
            event("refunded", intent="pi_1").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_session_id": "cs_2", "payment_intent_id": "pi_2"},
    ),
    Sequence(
        "Stripe and PayPal: a direct debit runs, PayPal pays, and so does the debit",
        sources.STRIPE_SEPA,
        (
            event("unpaid", STRIPE, "cs_1"),
            event("processing", session="cs_1", intent="pi_1"),
            event("CREATED", PAYPAL, intent="O1").answered(NOT_CURRENT),
            event("COMPLETED", PAYPAL, intent="O1", transaction="C1"),
            event("succeeded", STRIPE, intent="pi_1").answered(DUPLICATE),
        ),
        "PAID",
        {"payment_provider": PAYPAL, "payment_intent_id": "O1"},
    ),
    Sequence(
        "Adyen: two payments of one order",
        sources.ADYEN_ISSUE_256,
        (
            event("authorised", ADYEN, intent="psp1"),
            event("captured", intent="psp1"),
            event("authorised", ADYEN, intent="psp2").answered(DUPLICATE),
            event("captured", intent="psp2").answered(DUPLICATE),
        ),
        "PAID",
        {"payment_intent_id": "psp1"},
    ),
    Sequence(
        "AllSecure: the first uuid is polled after a refund with a uuid of its own",
        sources.IXOPAY_API,
        (
            event("DEBIT", ALLSECURE, intent="u1"),
            event("partially_refunded", intent="u2"),
            event("DEBIT", intent="u1").answered(DUPLICATE),
            event("REFUND", intent="u3"),
        ),
        "REFUNDED",
        {"payment_intent_id": "u3"},
    ),
    Sequence(
        "AllSecure: after a duplicate, a chargeback counts only under the uuid of the payment",
        sources.IXOPAY_CALLBACKS,
        (
            event("DEBIT", ALLSECURE, intent="u1"),
            event("DEBIT", ALLSECURE, intent="u2").answered(DUPLICATE),
            event("CHARGEBACK", intent="u3").answered(NOT_CURRENT),
            event("CHARGEBACK", intent="u1"),
        ),
        "CHARGED_BACK",
        {"payment_intent_id": "u1"},
    ),
    Sequence(
        "AllSecure: after a duplicate without an intent, a refund by its own uuid is overridden",
        sources.IXOPAY_CALLBACKS,
        (
            event("DEBIT", ALLSECURE, intent="u1"),
            event("paid", STRIPE, "cs_1").answered(DUPLICATE),
            event("REFUND", ALLSECURE, intent="u2").answered(NOT_CURRENT),
            event("REFUND", ALLSECURE, intent="u2").overriding("seen at the provider"),
        ),
        "REFUNDED",
        {"payment_intent_id": "u2"},
    ),
    Sequence(
        "PayPal: three approved orders are captured for one order of the shop",
        sources.PAYPAL_ISSUE_395,
        (
            event("APPROVED", PAYPAL, intent="O1"),
            event("APPROVED", PAYPAL, intent="O2"),
            event("COMPLETED", PAYPAL, intent="O1", transaction="C1"),
            event("COMPLETED", PAYPAL, intent="O2", transaction="C2").answered(DUPLICATE),
            event("COMPLETED", PAYPAL, intent="O3", transaction="C3").answered(DUPLICATE),
            event("REFUNDED", PAYPAL, intent="O3", transaction="R3").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_intent_id": "O1", "payment_transaction_id": "C1"},
    ),
    Sequence(
        "Klarna: a second order at Klarna is authorized after the first was captured",
        sources.KLARNA_STATES,
        (
            event("AUTHORIZED", KLARNA, intent="k1"),
            event("CAPTURED", intent="k1"),
            event("AUTHORIZED", KLARNA, intent="k2").answered(DUPLICATE),
            event("CANCELLED", KLARNA, intent="k2").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_intent_id": "k1"},
    ),
)
