"""Captures, totals and currencies."""

from typing import Final

from tests.support.provider_sequences import sources
from tests.support.provider_sequences.sequence import (
    ADYEN,
    ALLSECURE,
    CURRENCY_MISMATCH,
    CURRENT,
    DAY,
    DUPLICATE,
    ETAG_MISMATCH,
    KLARNA,
    MOLLIE,
    NOT_CURRENT,
    PAYPAL,
    REFUSED,
    STALE,
    STRIPE,
    Event,
    Sequence,
    event,
)

AMOUNTS: Final = (
    Sequence(
        "Klarna: a second capture after a part refund",
        sources.KLARNA_CAPTURES,
        (
            event("captured", KLARNA, intent="k1", transaction="c1").at(1),
            event("partially_refunded", intent="k1", transaction="r1").at(2),
            event("captured", intent="k1", transaction="c2").at(3).answered(REFUSED),
        ),
        "PARTIALLY_REFUNDED",
    ),
    Sequence(
        "Adyen: the rest of an authorization is released after a part capture",
        sources.ADYEN_CAPTURE,
        (
            event("authorized", ADYEN, intent="psp1").at(1),
            event("captured", intent="psp1", transaction="c1").at(2),
            event("cancelled", intent="psp1").at(3).answered(REFUSED),
        ),
        "PAID",
    ),
    Sequence(
        "Adyen: a second capture fails, in a word that does not say of what",
        sources.ADYEN_CAPTURE,
        (
            event("captured", ADYEN, intent="psp1", transaction="c1").at(2),
            event("failed", intent="psp1", transaction="c2").at(3).answered(REFUSED),
        ),
        "PAID",
    ),
    Sequence(
        "AllSecure: a refund in a wrong currency is corrected",
        sources.IXOPAY_CALLBACKS,
        (
            event("paid", ALLSECURE, intent="u1"),
            event("refunded", intent="u2").in_currency("USD").answered(CURRENCY_MISMATCH),
            event("refunded", intent="u2").in_currency("eur"),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: a part is captured, and the rest released",
        sources.STRIPE_HOLD,
        (
            event("requires_capture", STRIPE, intent="pi_1"),
            event("succeeded", intent="pi_1").totals(captured=8_000),
        ),
        "PAID",
        {"captured_amount": 8_000},
        amounts_disagree=True,
    ),
    Sequence(
        "Stripe: captured in two parts, while a poller says requires_capture",
        sources.STRIPE_MULTICAPTURE,
        (
            event("requires_capture", STRIPE, intent="pi_1"),
            event("partially_captured", intent="pi_1").totals(captured=4_000),
            event("requires_capture", intent="pi_1").answered(REFUSED),
            event("succeeded", intent="pi_1").totals(captured=10_000),
        ),
        "PAID",
        {"captured_amount": 10_000},
    ),
    Sequence(
        "Stripe: the first capture is delivered after the second",
        sources.STRIPE_MULTICAPTURE,
        (
            event("requires_capture", STRIPE, intent="pi_1").at(0),
            event("succeeded", intent="pi_1").at(20).totals(captured=10_000),
            event("partially_captured", intent="pi_1").at(10).totals(captured=4_000),
        ),
        "PAID",
        {"captured_amount": 10_000},
    ),
    Sequence(
        "Stripe: refunded in two parts",
        sources.STRIPE_REFUNDS,
        (
            event("succeeded", STRIPE, intent="pi_1").totals(10_000, 0),
            event("partially_refunded", intent="pi_1", transaction="re_1").totals(10_000, 3_000),
            event("refunded", intent="pi_1", transaction="re_2").totals(10_000, 10_000),
        ),
        "REFUNDED",
        {"refunded_amount": 10_000},
    ),
    Sequence(
        "Stripe: an event that is refused changes no amount",
        sources.STRIPE_SESSIONS,
        (
            event("succeeded", STRIPE, intent="pi_1").totals(captured=10_000),
            event("processing", intent="pi_1").totals(captured=12_000).answered(REFUSED),
            event("succeeded", intent="pi_2").totals(captured=20_000).answered(DUPLICATE),
        ),
        "PAID",
        {"captured_amount": 10_000},
    ),
    Sequence(
        "Stripe: amounts come on their own, after the payment",
        sources.STRIPE_MULTICAPTURE,
        (
            event("succeeded", STRIPE, intent="pi_1"),
            Event(captured_amount=10_000, refunded_amount=0),
            Event(payment_intent_id="pi_2", captured_amount=10_000).answered(NOT_CURRENT),
        ),
        "PAID",
        {"captured_amount": 10_000, "refunded_amount": 0},
    ),
    Sequence(
        "Stripe: the customer pays in the currency of the country",
        sources.STRIPE_ADAPTIVE_PRICING,
        (
            event("unpaid", STRIPE, "cs_1").in_currency("eur"),
            event("paid", session="cs_1", intent="pi_1")
            .totals(captured=10_870)
            .in_currency("usd")
            .answered(CURRENCY_MISMATCH),
            event("paid", session="cs_1", intent="pi_1").totals(captured=10_000).in_currency("EUR"),
        ),
        "PAID",
        {"captured_amount": 10_000},
    ),
    Sequence(
        "Stripe: a reason to override does not pass over the currency",
        sources.STRIPE_ADAPTIVE_PRICING,
        (
            event("unpaid", STRIPE, "cs_1"),
            event("paid", session="cs_1")
            .in_currency("USD")
            .overriding("the customer paid in dollars")
            .answered(CURRENCY_MISMATCH),
        ),
        "PENDING",
    ),
    Sequence(
        "Adyen: two part captures are added up, by the etag",
        sources.ADYEN_CAPTURE,
        (
            event("authorised", ADYEN, intent="psp1"),
            event("captured", intent="psp1", transaction="m1")
            .totals(captured=4_000)
            .if_etag(CURRENT),
            event("captured", intent="psp1", transaction="m2")
            .totals(captured=6_000)
            .if_etag(STALE)
            .answered(ETAG_MISMATCH),
            event("captured", intent="psp1", transaction="m2")
            .totals(captured=10_000)
            .if_etag(CURRENT),
        ),
        "PAID",
        {"captured_amount": 10_000, "payment_transaction_id": "m2"},
    ),
    Sequence(
        "PayPal: an authorization is captured in part, and voided for the rest",
        sources.PAYPAL_EVENTS,
        (
            event("authorized", PAYPAL, intent="O1", transaction="A1"),
            event("COMPLETED", intent="O1", transaction="C1").totals(captured=7_500),
            event("VOIDED", intent="O1", transaction="A1").answered(REFUSED),
        ),
        "PAID",
        {"captured_amount": 7_500, "payment_transaction_id": "C1"},
        amounts_disagree=True,
    ),
    Sequence(
        "PayPal: more is refunded than was captured",
        sources.PAYPAL_CAPTURES,
        (
            event("COMPLETED", PAYPAL, intent="O1", transaction="C1").totals(captured=10_000),
            event("REFUNDED", intent="O1", transaction="R1").totals(refunded=10_500),
        ),
        "REFUNDED",
        {"captured_amount": 10_000, "refunded_amount": 10_500},
        amounts_disagree=True,
    ),
    Sequence(
        "Klarna: shipped and captured in parts, the last of which comes back",
        sources.KLARNA_CAPTURES,
        (
            event("AUTHORIZED", KLARNA, intent="k1").totals(0, 0),
            event("PART_CAPTURED", intent="k1", transaction="c1").totals(6_000, 0),
            event("CAPTURED", intent="k1", transaction="c2").totals(10_000, 0),
            event("partially_refunded", intent="k1", transaction="r1").totals(10_000, 4_000),
        ),
        "PARTIALLY_REFUNDED",
        {"captured_amount": 10_000, "refunded_amount": 4_000},
    ),
    Sequence(
        "Klarna: the authorization of the rest expires after a part was captured",
        sources.KLARNA_AUTHORIZATIONS,
        (
            event("AUTHORIZED", KLARNA, intent="k1").at(0),
            event("PART_CAPTURED", intent="k1", transaction="c1").at(DAY).totals(captured=6_000),
            event("EXPIRED", intent="k1").at(28 * DAY).answered(REFUSED),
        ),
        "PAID",
        {"captured_amount": 6_000},
        amounts_disagree=True,
    ),
    Sequence(
        "Mollie: authorized by Klarna, and captured in parts",
        sources.MOLLIE_CAPTURES,
        (
            event("authorized", MOLLIE, intent="tr_1").totals(captured=0),
            event("partially_captured", intent="tr_1", transaction="cpt_1").totals(captured=2_500),
            event("paid", intent="tr_1", transaction="cpt_2").totals(captured=10_000),
        ),
        "PAID",
        {"captured_amount": 10_000, "payment_transaction_id": "cpt_2"},
    ),
    Sequence(
        "AllSecure: a total that was sent too high is corrected by an override",
        sources.ALLSECURE_GATEWAY,
        (
            event("DEBIT", ALLSECURE, intent="p1").totals(captured=100_000),
            Event(captured_amount=10_000),
            Event(captured_amount=10_000).overriding("sent a hundred times too high"),
        ),
        "PAID",
        {"captured_amount": 10_000},
    ),
    Sequence(
        "Stripe: more is captured than the order's total, and refunded",
        sources.STRIPE_REFUNDS,
        (
            event("succeeded", STRIPE, intent="pi_1").totals(captured=12_000),
            event("refunded", intent="pi_1").totals(refunded=12_000),
        ),
        "REFUNDED",
        {"captured_amount": 12_000},
        amounts_disagree=True,
    ),
    Sequence(
        "Stripe: a refund fails, and its total is sent back",
        sources.STRIPE_REFUNDS,
        (
            event("succeeded", STRIPE, intent="pi_1").totals(10_000, 0),
            event("refunded", intent="pi_1").totals(refunded=10_000),
            event("refund_failed", intent="pi_1").totals(refunded=0),
        ),
        "PAID",
        {"refunded_amount": 0},
    ),
    Sequence(
        "Stripe: a refund fails, without the total that has been refunded",
        sources.STRIPE_REFUNDS,
        (
            event("succeeded", STRIPE, intent="pi_1").totals(10_000, 0),
            event("refunded", intent="pi_1").totals(refunded=10_000),
            event("refund_failed", intent="pi_1"),
        ),
        "PAID",
        {"refunded_amount": 10_000},
        amounts_disagree=True,
    ),
    Sequence(
        "Adyen: more is refunded than a part capture, and the rest charged back",
        sources.ADYEN_SEPA,
        (
            event("captured", ADYEN, intent="psp1").totals(captured=8_000),
            event("partially_refunded", intent="psp1").totals(refunded=9_000),
            event("CHARGEBACK", intent="psp1"),
        ),
        "CHARGED_BACK",
        amounts_disagree=True,
    ),
)
