"""Refunds and returned direct debits, also those that fail."""

from typing import Final

from tests.support.provider_sequences import sources
from tests.support.provider_sequences.sequence import (
    ADYEN,
    ALLSECURE,
    DAY,
    DUPLICATE,
    LATE,
    MOLLIE,
    NOT_CURRENT,
    PAYPAL,
    REFUSED,
    STRIPE,
    Sequence,
    event,
)

REFUNDS: Final = (
    Sequence(
        "Mollie: a direct debit is returned after a part refund",
        sources.MOLLIE_CHARGEBACKS,
        (
            event("paid", MOLLIE, intent="tr1"),
            event("partially_refunded", intent="tr1"),
            event("returned", intent="tr1"),
        ),
        "RETURNED",
    ),
    Sequence(
        "AllSecure: a whole life under the purchaseId",
        sources.IXOPAY_CALLBACKS,
        (
            event("authorized", ALLSECURE, intent="p1", transaction="u1"),
            event("captured", intent="p1", transaction="u2"),
            event("refunded", intent="p1", transaction="u3"),
            event("chargeback", intent="p1", transaction="u4"),
            event("CHARGEBACK-REVERSAL", intent="p1", transaction="u5"),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: a full refund fails",
        sources.STRIPE_REFUNDS,
        (
            event("paid", STRIPE, "S1", "pi1"),
            event("refunded", intent="pi1"),
            event("refund_failed", intent="pi1"),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: the duplicate is refunded, not the order",
        sources.STRIPE_REFUNDS,
        (
            event("paid", STRIPE, "S1", "pi1"),
            event("paid", STRIPE, "S2", "pi2").answered(DUPLICATE),
            event("refunded", STRIPE, intent="pi2").answered(NOT_CURRENT),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: a refund of an intent that nobody has reported",
        sources.STRIPE_REFUNDS,
        (
            event("paid", STRIPE, "S1", "pi1"),
            event("paid", STRIPE, "S2").answered(DUPLICATE),
            event("refunded", intent="pi2").answered(NOT_CURRENT),
        ),
        "PAID",
    ),
    Sequence(
        "PayPal refunds something that the order was not paid with",
        sources.PAYPAL_CAPTURES,
        (
            event("paid", STRIPE, "S1", "pi1"),
            event("refunded", PAYPAL, intent="R1").answered(NOT_CURRENT),
        ),
        "PAID",
    ),
    Sequence(
        "Mollie: a direct debit is returned, and a poller says paid",
        sources.MOLLIE_CHARGEBACKS,
        (
            event("paid", MOLLIE, intent="tr1").at(1),
            event("returned", intent="tr1").at(5),
            event("paid", intent="tr1").at(9).answered(REFUSED),
        ),
        "RETURNED",
    ),
    Sequence(
        "Mollie: paid anew after a return",
        sources.MOLLIE_CHARGEBACKS,
        (
            event("paid", MOLLIE, intent="tr1"),
            event("returned", intent="tr1"),
            event("paid", intent="tr2"),
        ),
        "PAID",
    ),
    Sequence(
        "Mollie: returned before it was paid",
        sources.MOLLIE_CHARGEBACKS,
        (
            event("processing", MOLLIE, intent="tr1"),
            event("returned", intent="tr1"),
        ),
        "FAILED",
    ),
    Sequence(
        "Mollie: refunded, and returned by the bank as well",
        sources.MOLLIE_CHARGEBACKS,
        (
            event("paid", MOLLIE, intent="tr1"),
            event("refunded", intent="tr1"),
            event("returned", intent="tr1"),
        ),
        "RETURNED",
    ),
    Sequence(
        "Stripe: a failed refund of another attempt does not pay an order that runs",
        sources.STRIPE_REFUNDS,
        (
            event("processing", STRIPE, "S2", "pi2"),
            event("refund_failed", intent="pi1").answered(NOT_CURRENT),
        ),
        "PROCESSING",
    ),
    Sequence(
        "AllSecure: the duplicate is refunded by a uuid of its own",
        sources.IXOPAY_CALLBACKS,
        (
            event("paid", ALLSECURE, intent="u1"),
            event("paid", intent="u9").answered(DUPLICATE),
            event("refunded", intent="u10").answered(NOT_CURRENT),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: a refund is pending and fails, in the refund's own words",
        sources.STRIPE_REFUND_STATUS,
        (
            event("succeeded", STRIPE, intent="pi_1"),
            event("pending", intent="pi_1", transaction="re_1").answered(REFUSED),
            event("failed", intent="pi_1", transaction="re_1").answered(REFUSED),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: the second of two refunds fails",
        sources.STRIPE_REFUNDS,
        (
            event("succeeded", STRIPE, intent="pi_1").totals(captured=10_000),
            event("partially_refunded", intent="pi_1", transaction="re_1").totals(refunded=3_000),
            event("refunded", intent="pi_1", transaction="re_2").totals(refunded=10_000),
            event("refund_failed", intent="pi_1", transaction="re_2").totals(refunded=3_000),
        ),
        "PARTIALLY_REFUNDED",
        {"captured_amount": 10_000, "refunded_amount": 3_000},
    ),
    Sequence(
        "Stripe: the failure of the second refund is delivered before the first refund",
        sources.STRIPE_REFUNDS,
        (
            event("succeeded", STRIPE, intent="pi_1").at(0).totals(captured=10_000),
            event("refund_failed", intent="pi_1", transaction="re_2")
            .at(9 * DAY)
            .totals(refunded=3_000),
            event("partially_refunded", intent="pi_1", transaction="re_1")
            .at(5 * DAY)
            .totals(refunded=3_000),
        ),
        "PARTIALLY_REFUNDED",
        {"captured_amount": 10_000, "refunded_amount": 3_000},
    ),
    Sequence(
        "Stripe: the only refund fails, and nothing is refunded",
        sources.STRIPE_REFUNDS,
        (
            event("succeeded", STRIPE, intent="pi_1").totals(captured=10_000),
            event("refunded", intent="pi_1").totals(10_000, 10_000),
            event("refund_failed", intent="pi_1").totals(10_000, 0),
        ),
        "PAID",
        {"captured_amount": 10_000, "refunded_amount": 0},
    ),
    Sequence(
        "AllSecure: a refund ends in an error, in the word of any transaction",
        sources.IXOPAY_CALLBACKS,
        (
            event("DEBIT", ALLSECURE, intent="p1", transaction="u1"),
            event("error", intent="p1", transaction="u2").answered(REFUSED),
            event("REFUND", intent="p1", transaction="u3"),
        ),
        "REFUNDED",
        {"payment_transaction_id": "u3"},
    ),
    Sequence(
        "Adyen: a direct debit is refunded, and charged back as well",
        sources.ADYEN_SEPA,
        (
            event("captured", ADYEN, intent="psp1"),
            event("refunded", intent="psp1", transaction="m1"),
            event("CHARGEBACK", intent="psp1", transaction="d1"),
        ),
        "CHARGED_BACK",
        {"contested_from": "REFUNDED"},
    ),
    Sequence(
        "Adyen: the capture fails at the scheme days later",
        sources.ADYEN_FAILURES,
        (
            event("authorised", ADYEN, intent="psp1").at(0),
            event("captured", intent="psp1", transaction="m1").at(DAY),
            event("CAPTURE_FAILED", intent="psp1", transaction="m1").at(3 * DAY),
        ),
        "RETURNED",
    ),
    Sequence(
        "Adyen: the only capture fails before its success is delivered",
        sources.ADYEN_FAILURES,
        (
            event("authorised", ADYEN, intent="psp1").at(0),
            event("CAPTURE_FAILED", intent="psp1", transaction="m1").at(3 * DAY),
            event("captured", intent="psp1", transaction="m1").at(DAY).answered(LATE),
        ),
        "FAILED",
    ),
    Sequence(
        "Adyen: a refund fails",
        sources.ADYEN_REFUND,
        (
            event("captured", ADYEN, intent="psp1"),
            event("refunded", intent="psp1", transaction="m1"),
            event("REFUND_FAILED", intent="psp1", transaction="m1"),
        ),
        "PAID",
    ),
    Sequence(
        "Mollie: a refund is pending and processing, then refunded",
        sources.MOLLIE_REFUNDS,
        (
            event("paid", MOLLIE, intent="tr_1"),
            event("pending", intent="tr_1", transaction="re_1").answered(REFUSED),
            event("processing", intent="tr_1", transaction="re_1").answered(REFUSED),
            event("refunded", intent="tr_1", transaction="re_1"),
        ),
        "REFUNDED",
    ),
    Sequence(
        "AllSecure: another provider's refund, by an id that nobody has seen",
        sources.PAYPAL_CAPTURES,
        (
            event("DEBIT", ALLSECURE, intent="u1"),
            event("REFUNDED", PAYPAL, intent="R1").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_provider": ALLSECURE},
    ),
    Sequence(
        "Mollie: a refund of a payment that is not the order's",
        sources.MOLLIE_REFUNDS,
        (
            event("paid", MOLLIE, intent="tr_1"),
            event("refunded", MOLLIE, intent="tr_2").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_intent_id": "tr_1"},
    ),
)
