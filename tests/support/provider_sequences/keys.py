"""Idempotency keys, etags and overrides."""

from typing import Final

from tests.support.provider_sequences import sources
from tests.support.provider_sequences.sequence import (
    ALLSECURE,
    CURRENT,
    DUPLICATE,
    ETAG_MISMATCH,
    KEY_REUSED,
    LATE,
    MISSING_ORDER,
    NOT_CURRENT,
    NOT_FOUND,
    OTHER_ORDER,
    PAYPAL,
    REFUSED,
    REPLAYED,
    STALE,
    STRIPE,
    Sequence,
    event,
)

KEYS: Final = (
    Sequence(
        "Stripe: one key for the whole payment",
        sources.STRIPE_IDEMPOTENCY,
        (
            event("pending", STRIPE, "S1").keyed("pay_1"),
            event("paid", intent="pi1", transaction="txn1").keyed("pay_1"),
            event("pending", STRIPE, "S1").keyed("pay_1").answered(REPLAYED),
            event("paid", intent="pi1", transaction="txn1").keyed("pay_1").answered(REPLAYED),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: an event is sent again with a field that was unknown before",
        sources.STRIPE_DELIVERY,
        (
            event("paid", STRIPE, intent="pi1").keyed("e1"),
            event("refunded", intent="pi1").keyed("e2"),
            event("paid", STRIPE, intent="pi1", transaction="ch1").keyed("e1").answered(REFUSED),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: keys k1 and k2, then k1 with other values",
        sources.STRIPE_IDEMPOTENCY,
        (
            event("pending", STRIPE, "S1").keyed("k1"),
            event("processing", intent="pi1").keyed("k2"),
            event("paid", intent="pi1").keyed("k1"),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: events are delivered again after newer ones, each under its id",
        sources.STRIPE_DUPLICATES,
        (
            event("unpaid", STRIPE, "cs_1").keyed("stripe_evt_1"),
            event("succeeded", intent="pi_1").keyed("stripe_evt_2"),
            event("unpaid", STRIPE, "cs_1").keyed("stripe_evt_1").answered(REPLAYED),
            event("refunded", intent="pi_1").keyed("stripe_evt_3"),
            event("succeeded", intent="pi_1").keyed("stripe_evt_2").answered(REPLAYED),
        ),
        "REFUNDED",
        {"payment_status": "refunded", "payment_idempotency_key": "stripe_evt_3"},
    ),
    Sequence(
        "AllSecure: one key for the payment, from its debit to its chargeback's reversal",
        sources.IXOPAY_CALLBACKS,
        (
            event("DEBIT", ALLSECURE, intent="u1").keyed("pay_1"),
            event("CHARGEBACK", intent="u3").keyed("pay_1"),
            event("CHARGEBACK-REVERSAL", intent="u4").keyed("pay_1"),
            event("CHARGEBACK", intent="u3").keyed("pay_1").answered(REPLAYED),
            event("DEBIT", ALLSECURE, intent="u1").keyed("pay_1").answered(REPLAYED),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: refunded again under one key, told apart by the refund's id",
        sources.STRIPE_REFUNDS,
        (
            event("succeeded", STRIPE, intent="pi_1").keyed("pay_1"),
            event("refunded", intent="pi_1", transaction="re_1").keyed("pay_1"),
            event("refund_failed", intent="pi_1", transaction="re_1").keyed("pay_1"),
            event("refunded", intent="pi_1", transaction="re_2").keyed("pay_1"),
        ),
        "REFUNDED",
        {"payment_transaction_id": "re_2"},
    ),
    Sequence(
        "PayPal: an event is delivered twice within a second",
        sources.PAYPAL_ISSUE_1286,
        (
            event("APPROVED", PAYPAL, intent="O1").keyed("paypal_WH-1"),
            event("COMPLETED", PAYPAL, intent="O1", transaction="C1").keyed("paypal_WH-2"),
            event("COMPLETED", PAYPAL, intent="O1", transaction="C1")
            .keyed("paypal_WH-2")
            .answered(REPLAYED),
        ),
        "PAID",
        {"payment_transaction_id": "C1"},
    ),
    Sequence(
        "Stripe: one key for two orders",
        sources.STRIPE_IDEMPOTENCY,
        (
            event("succeeded", STRIPE, intent="pi_1").keyed("pay_1").of(OTHER_ORDER),
            event("succeeded", STRIPE, intent="pi_1").keyed("pay_1").answered(KEY_REUSED),
            event("succeeded", STRIPE, intent="pi_1").keyed("pay_2"),
            event("refunded", intent="pi_1").keyed("pay_1").of(OTHER_ORDER),
        ),
        "PAID",
        {"payment_idempotency_key": "pay_2"},
    ),
    Sequence(
        "Stripe: a key belongs to no order before an event with it was taken",
        sources.STRIPE_IDEMPOTENCY,
        (
            event("succeeded", STRIPE, intent="pi_1"),
            event("succeeded", STRIPE, intent="pi_2").keyed("pay_2").answered(DUPLICATE),
            event("succeeded", STRIPE, intent="pi_2").keyed("pay_2").of(OTHER_ORDER),
            event("succeeded", STRIPE, intent="pi_2").keyed("pay_2").answered(KEY_REUSED),
        ),
        "PAID",
        {"payment_intent_id": "pi_1"},
    ),
    Sequence(
        "Stripe: what was refused under a key is judged again when it is delivered again",
        sources.STRIPE_DUPLICATES,
        (
            event("processing", STRIPE, "cs_2", "pi_2").at(20),
            event("failed", STRIPE, "cs_1", "pi_1").at(10).keyed("evt_1").answered(NOT_CURRENT),
            event("failed", intent="pi_2").at(30),
            event("failed", STRIPE, "cs_1", "pi_1").at(10).keyed("evt_1").answered(LATE),
            event("succeeded", intent="pi_2").at(40),
        ),
        "PAID",
        {"payment_intent_id": "pi_2", "payment_idempotency_key": None},
    ),
    Sequence(
        "Stripe: a replay compares neither the etag nor the case of the currency",
        sources.AIP_154,
        (
            event("unpaid", STRIPE, "cs_1"),
            event("succeeded", STRIPE, intent="pi_1")
            .keyed("pay_1")
            .in_currency("eur")
            .if_etag(CURRENT),
            event("succeeded", STRIPE, intent="pi_1")
            .keyed("pay_1")
            .in_currency("EUR")
            .if_etag(STALE)
            .answered(REPLAYED),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: a mistaken etag comes before the judgement, and is not on record",
        sources.AIP_154,
        (
            event("succeeded", STRIPE, intent="pi_1"),
            event("succeeded", STRIPE, intent="pi_2").if_etag(STALE).answered(ETAG_MISMATCH),
            event("succeeded", STRIPE, intent="pi_2").if_etag(CURRENT).answered(DUPLICATE),
        ),
        "PAID",
        {"payment_intent_id": "pi_1"},
    ),
    Sequence(
        "Stripe: an event comes before its order is there",
        sources.STRIPE_DELIVERY,
        (
            event("succeeded", STRIPE, intent="pi_1")
            .keyed("evt_1")
            .of(MISSING_ORDER)
            .answered(NOT_FOUND),
            event("succeeded", STRIPE, intent="pi_1").keyed("evt_1"),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: a gift card and a card, the second by an override",
        sources.STRIPE_INTENTS,
        (
            event("succeeded", STRIPE, intent="pi_1").totals(captured=6_000),
            event("succeeded", STRIPE, intent="pi_2").totals(captured=10_000).answered(DUPLICATE),
            event("succeeded", STRIPE, intent="pi_2")
            .totals(captured=10_000)
            .overriding("gift card and card"),
        ),
        "PAID",
        {"payment_intent_id": "pi_2", "captured_amount": 10_000},
    ),
    Sequence(
        "Stripe: a refund that was reported by mistake is undone by an override",
        sources.STRIPE_REFUNDS,
        (
            event("succeeded", STRIPE, intent="pi_1").totals(10_000, 0),
            event("refunded", intent="pi_1").totals(10_000, 10_000),
            event("succeeded", intent="pi_1").totals(10_000, 0).answered(REFUSED),
            event("succeeded", intent="pi_1")
            .totals(10_000, 0)
            .overriding("the refund was of another order"),
        ),
        "PAID",
        {"refunded_amount": 0},
    ),
    Sequence(
        "AllSecure: a void by a uuid of its own needs an override",
        sources.IXOPAY_CALLBACKS,
        (
            event("PREAUTHORIZE", ALLSECURE, intent="u1"),
            event("VOID", intent="u2").answered(NOT_CURRENT),
            event("VOID", intent="u2").overriding("u2 voids u1"),
        ),
        "CANCELLED",
        {"payment_intent_id": "u2"},
    ),
    Sequence(
        "AllSecure: a second capture by a uuid of its own needs an override",
        sources.IXOPAY_CALLBACKS,
        (
            event("PREAUTHORIZE", ALLSECURE, intent="u1"),
            event("CAPTURE", intent="u2").totals(captured=4_000),
            event("CAPTURE", intent="u3").totals(captured=10_000).answered(DUPLICATE),
            event("CAPTURE", intent="u3").totals(captured=10_000).overriding("u3 captures u1, too"),
        ),
        "PAID",
        {"payment_intent_id": "u3", "captured_amount": 10_000},
    ),
)
