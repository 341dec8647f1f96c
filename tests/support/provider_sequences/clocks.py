"""Events out of order, pollers, and the shop's own clock."""

from typing import Final

from tests.support.provider_sequences import sources
from tests.support.provider_sequences.sequence import (
    ADYEN,
    DAY,
    DUPLICATE,
    KLARNA,
    LATE,
    MOLLIE,
    PAYPAL,
    REFUSED,
    STRIPE,
    Sequence,
    event,
)

CLOCKS: Final = (
    Sequence(
        "Stripe: the shop writes its own time, ahead of the provider's",
        sources.STRIPE_DELIVERY,
        (
            event("pending", STRIPE, "S1").at(54),
            event("paid", intent="pi1").at(50),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: the payment's event brings the intent after the session's later one",
        sources.STRIPE_DELIVERY,
        (
            event("pending", STRIPE, "S1").at(0),
            event("paid", session="S1").at(20),
            event("paid", intent="pi1", transaction="ch1").at(10),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: a poller says succeeded after a refund",
        sources.STRIPE_INTENTS,
        (
            event("paid", STRIPE, "S1", "pi1").at(1),
            event("refunded", intent="pi1").at(2),
            event("succeeded", intent="pi1").at(3).answered(REFUSED),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: a poller says paid after a chargeback",
        sources.STRIPE_INTENTS,
        (
            event("paid", STRIPE, "S1", "pi1").at(1),
            event("charged_back", intent="pi1").at(2),
            event("paid", intent="pi1").at(3).answered(REFUSED),
        ),
        "CHARGED_BACK",
    ),
    Sequence(
        "Klarna: a refund that is earlier than the second capture",
        sources.KLARNA_CAPTURES,
        (
            event("captured", KLARNA, intent="k1", transaction="c1").at(1),
            event("captured", intent="k1", transaction="c2").at(9),
            event("partially_refunded", intent="k1", transaction="r1").at(8),
        ),
        "PARTIALLY_REFUNDED",
    ),
    Sequence(
        "Stripe: a payment without a time, then a failure that names no ids",
        sources.STRIPE_DELIVERY,
        (
            event("processing", STRIPE, "S1").at(1),
            event("paid", session="S1"),
            event("failed").at(2).answered(REFUSED),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: a late requires_action of an intent that is authorized",
        sources.STRIPE_DELIVERY,
        (
            event("pending", STRIPE, "S1"),
            event("requires_capture", intent="pi1"),
            event("requires_action", intent="pi1").answered(REFUSED),
        ),
        "AUTHORIZED",
    ),
    Sequence(
        "Stripe: the first session pays just before the second expires",
        sources.STRIPE_SESSIONS,
        (
            event("pending", STRIPE, "A").at(1),
            event("pending", STRIPE, "B").at(2),
            event("expired", session="B").at(5),
            event("paid", session="A", intent="piA").at(4),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: later ids without a word do not make a refund late",
        sources.STRIPE_REFUNDS,
        (
            event("paid", STRIPE, "S1", "pi1").at(1),
            event(transaction="ch1").at(9),
            event("refunded", intent="pi1").at(8),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: a dispute is delivered before the payment",
        sources.STRIPE_DELIVERY,
        (
            event("pending", STRIPE, "S1").at(1),
            event("disputed", intent="pi1").at(9),
            event("paid", intent="pi1").at(5).answered(LATE),
        ),
        "DISPUTED",
    ),
    Sequence(
        "Stripe: a second payment that is older than the refund",
        sources.STRIPE_DELIVERY,
        (
            event("paid", STRIPE, intent="pi1").at(10),
            event("refunded", intent="pi1").at(50),
            event("paid", STRIPE, intent="pi2").at(40).answered(DUPLICATE),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: a poller's time does not make a refund late",
        sources.STRIPE_INTENTS,
        (
            event("pending", STRIPE, "S1").at(1),
            event("succeeded", intent="pi1").at(60),
            event("refunded", intent="pi1").at(50),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: the shop expires an order that was paid a second before",
        sources.STRIPE_DELIVERY,
        (
            event("pending", STRIPE, "S1", "pi1").at(1),
            event("expired").at(100),
            event("paid", intent="pi1").at(99),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: an older authorization of another session, after an expiry",
        sources.STRIPE_HOLD,
        (
            event("pending", STRIPE, "S1").at(1),
            event("expired", STRIPE, "S1").at(100),
            event("authorized", STRIPE, "S2", "pi2").at(99),
        ),
        "AUTHORIZED",
    ),
    Sequence(
        "Stripe: the shop's clock is ahead of an authorization",
        sources.STRIPE_HOLD,
        (
            event("requires_action", STRIPE, intent="pi1").at(109),
            event("authorized", intent="pi1").at(100),
        ),
        "AUTHORIZED",
    ),
    Sequence(
        "Stripe: processing is delivered after succeeded",
        sources.STRIPE_DELIVERY,
        (
            event("unpaid", STRIPE, "cs_1").at(0),
            event("succeeded", intent="pi_1").at(20),
            event("processing", intent="pi_1").at(10).answered(REFUSED),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: the first failure of an intent is delivered while its second try runs",
        sources.STRIPE_DELIVERY,
        (
            event("processing", STRIPE, intent="pi_1").at(15),
            event("failed", intent="pi_1").at(10).answered(LATE),
            event("succeeded", intent="pi_1").at(20),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: a refund is delivered before the payment",
        sources.STRIPE_DELIVERY,
        (
            event("unpaid", STRIPE, "cs_1").at(0),
            event("refunded", intent="pi_1").at(DAY),
            event("succeeded", intent="pi_1").at(60).answered(LATE),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: the part refund is delivered after the full one",
        sources.STRIPE_DELIVERY,
        (
            event("succeeded", STRIPE, intent="pi_1").at(0),
            event("refunded", intent="pi_1", transaction="re_2").at(2 * DAY),
            event("partially_refunded", intent="pi_1", transaction="re_1").at(DAY).answered(LATE),
        ),
        "REFUNDED",
        {"payment_transaction_id": "re_2"},
    ),
    Sequence(
        "Stripe: a dispute in the second of the refund, by a clock with fractions",
        sources.STRIPE_DELIVERY,
        (
            event("succeeded", STRIPE, intent="pi_1").at(0),
            event("refunded", intent="pi_1").at(DAY + 0.9),
            event("needs_response", intent="pi_1").at(DAY),
        ),
        "DISPUTED",
        {"contested_from": "REFUNDED"},
    ),
    Sequence(
        "Stripe: a poller's time does not make a chargeback late",
        sources.STRIPE_INTENTS,
        (
            event("succeeded", STRIPE, intent="pi_1").at(60 * DAY),
            event("lost", intent="pi_1", transaction="du_1").at(50 * DAY),
        ),
        "CHARGED_BACK",
    ),
    Sequence(
        "Stripe: a poller says succeeded while a dispute is open",
        sources.STRIPE_INTENTS,
        (
            event("succeeded", STRIPE, intent="pi_1").at(0),
            event("needs_response", intent="pi_1").at(10 * DAY),
            event("succeeded", intent="pi_1").at(11 * DAY).answered(REFUSED),
            event("dispute_won", intent="pi_1").at(12 * DAY),
            event("succeeded", intent="pi_1").at(13 * DAY),
        ),
        "PAID",
    ),
    Sequence(
        "Mollie: the shop cancels after 14 days what was paid, as its webhook was down",
        sources.MOLLIE_ISSUE_123,
        (
            event("open", MOLLIE, intent="tr_1").at(0),
            event("cancelled").at(14 * DAY),
            event("paid", MOLLIE, intent="tr_1").at(DAY),
        ),
        "PAID",
    ),
    Sequence(
        "Mollie: a poller says open, by its own clock, after the payment was authorized",
        sources.MOLLIE_STATUS,
        (
            event("open", MOLLIE, intent="tr_1").at(0),
            event("authorized", intent="tr_1").at(60),
            event("open", intent="tr_1").at(61).answered(REFUSED),
        ),
        "AUTHORIZED",
    ),
    Sequence(
        "Klarna: a poller says authorized after everything was captured",
        sources.KLARNA_STATES,
        (
            event("AUTHORIZED", KLARNA, intent="k1").at(0),
            event("CAPTURED", intent="k1").at(DAY),
            event("AUTHORIZED", intent="k1").at(2 * DAY).answered(REFUSED),
        ),
        "PAID",
    ),
    Sequence(
        "PayPal: the capture is completed before its pending is delivered",
        sources.PAYPAL_EVENTS,
        (
            event("APPROVED", PAYPAL, intent="O1").at(0),
            event("COMPLETED", intent="O1", transaction="C1").at(90),
            event("PENDING", intent="O1", transaction="C1").at(30).answered(REFUSED),
        ),
        "PAID",
    ),
    Sequence(
        "Adyen: the capture is delivered before the authorization",
        sources.ADYEN_CAPTURE,
        (
            event("captured", ADYEN, intent="psp1", transaction="m1").at(10),
            event("authorised", ADYEN, intent="psp1").at(0).answered(REFUSED),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: the shop's clock is ahead of a refund, and a poller says succeeded",
        sources.STRIPE_INTENTS,
        (
            event("requires_action", STRIPE, intent="pi_1").at(100),
            event("refunded", intent="pi_1").at(90),
            event("succeeded", intent="pi_1").at(95).answered(LATE),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: the first session's payment is delivered after the second's later failure",
        sources.STRIPE_DELIVERY,
        (
            event("failed", STRIPE, "cs_2", "pi_2").at(30),
            event("paid", STRIPE, "cs_1", "pi_1").at(20),
        ),
        "PAID",
        {"payment_session_id": "cs_1", "payment_intent_id": "pi_1"},
    ),
    Sequence(
        "Stripe: a poller says requires_capture after the cancellation that is yet to be delivered",
        sources.STRIPE_HOLD,
        (
            event("requires_capture", STRIPE, intent="pi_1").at(0),
            event("requires_capture", intent="pi_1").at(200),
            event("canceled", intent="pi_1").at(100),
        ),
        "CANCELLED",
    ),
    Sequence(
        "Mollie: a poller says refunded after the chargeback that is yet to be delivered",
        sources.MOLLIE_CHARGEBACKS,
        (
            event("paid", MOLLIE, intent="tr_1").at(0),
            event("refunded", intent="tr_1").at(10 * DAY),
            event("refunded", intent="tr_1").at(20 * DAY),
            event("chargeback", intent="tr_1").at(15 * DAY),
        ),
        "CHARGED_BACK",
    ),
)
