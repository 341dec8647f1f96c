"""Inquiries, disputes and chargebacks, and how they end."""

from typing import Final

from tests.support.provider_sequences import sources
from tests.support.provider_sequences.sequence import (
    ADYEN,
    ALLSECURE,
    DAY,
    LATE,
    MOLLIE,
    NOT_CURRENT,
    PAYPAL,
    REFUSED,
    REPLAYED,
    STRIPE,
    UNKNOWN_WORD,
    Sequence,
    event,
)

DISPUTES: Final = (
    Sequence(
        "AllSecure: a dispute, then the reversal of a chargeback",
        sources.IXOPAY_CALLBACKS,
        (
            event("paid", ALLSECURE, intent="u1"),
            event("disputed", intent="u1"),
            event("chargeback-reversal", intent="u1"),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: an inquiry is closed",
        sources.STRIPE_DISPUTES,
        (
            event("paid", STRIPE, "S1", "pi1"),
            event("warning_needs_response", intent="pi1", transaction="dp1"),
            event("warning_closed", intent="pi1", transaction="dp1"),
        ),
        "PAID",
    ),
    Sequence(
        "AllSecure: the reversal is delivered before its chargeback",
        sources.IXOPAY_CALLBACKS,
        (
            event("paid", ALLSECURE, intent="u1").at(1),
            event("chargeback_reversed", intent="u1").at(9),
            event("chargeback", intent="u1").at(5).answered(LATE),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: refunded, disputed, won",
        sources.STRIPE_DISPUTES,
        (
            event("paid", STRIPE, intent="pi1"),
            event("refunded", intent="pi1"),
            event("disputed", intent="pi1"),
            event("dispute_won", intent="pi1"),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: a part refund, a dispute that is lost, and its reversal",
        sources.STRIPE_DISPUTES,
        (
            event("paid", STRIPE, intent="pi1"),
            event("partially_refunded", intent="pi1"),
            event("disputed", intent="pi1"),
            event("charged_back", intent="pi1"),
            event("chargeback_reversed", intent="pi1"),
        ),
        "PARTIALLY_REFUNDED",
    ),
    Sequence(
        "Stripe: a dispute won by another attempt does not pay an order that failed",
        sources.STRIPE_DISPUTES,
        (
            event("failed", STRIPE, "S2", "pi2"),
            event("dispute_won", intent="pi1").answered(NOT_CURRENT),
        ),
        "FAILED",
    ),
    Sequence(
        "AllSecure: a chargeback is delivered again after its reversal",
        sources.IXOPAY_CALLBACKS,
        (
            event("paid", ALLSECURE, intent="u1"),
            event("chargeback", intent="u3").keyed("c3"),
            event("chargeback_reversed", intent="u4"),
            event("chargeback", intent="u3").keyed("c3").answered(REPLAYED),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: an inquiry becomes a chargeback that is lost, and a poller says succeeded",
        sources.STRIPE_DISPUTES,
        (
            event("succeeded", STRIPE, intent="pi_1").at(0),
            event("warning_needs_response", intent="pi_1", transaction="du_1").at(10 * DAY),
            event("needs_response", intent="pi_1", transaction="du_1").at(20 * DAY),
            event("lost", intent="pi_1", transaction="du_1").at(60 * DAY),
            event("succeeded", intent="pi_1").at(61 * DAY).answered(REFUSED),
        ),
        "CHARGED_BACK",
    ),
    Sequence(
        "Stripe: evidence is under review, a word for many things, and the dispute is won",
        sources.STRIPE_DISPUTE_STATUS,
        (
            event("succeeded", STRIPE, intent="pi_1"),
            event("needs_response", intent="pi_1"),
            event("under_review", intent="pi_1").answered(UNKNOWN_WORD),
            event("dispute_won", intent="pi_1"),
        ),
        "PAID",
        {"contested_from": None},
    ),
    Sequence(
        "Stripe: an inquiry is answered by a refund, and closed",
        sources.STRIPE_DISPUTES,
        (
            event("succeeded", STRIPE, intent="pi_1").at(0),
            event("warning_needs_response", intent="pi_1").at(10 * DAY),
            event("refunded", intent="pi_1").at(11 * DAY),
            event("warning_closed", intent="pi_1").at(12 * DAY),
        ),
        "REFUNDED",
    ),
    Sequence(
        "Stripe: an inquiry's end is delivered before its begin",
        sources.STRIPE_DELIVERY,
        (
            event("succeeded", STRIPE, intent="pi_1").at(0),
            event("warning_closed", intent="pi_1").at(20 * DAY),
            event("warning_needs_response", intent="pi_1").at(10 * DAY).answered(LATE),
        ),
        "PAID",
    ),
    Sequence(
        "Stripe: a direct debit is disputed; the bank's decision is final",
        sources.STRIPE_ACH,
        (
            event("processing", STRIPE, "cs_1", "pi_1").at(0),
            event("succeeded", intent="pi_1").at(4 * DAY),
            event("lost", intent="pi_1", transaction="du_1").at(30 * DAY),
        ),
        "CHARGED_BACK",
    ),
    Sequence(
        "Stripe: a dispute is won, and another one lost",
        sources.STRIPE_DISPUTES,
        (
            event("succeeded", STRIPE, intent="pi_1").at(0),
            event("needs_response", intent="pi_1", transaction="du_1").at(10 * DAY),
            event("dispute_won", intent="pi_1", transaction="du_1").at(20 * DAY),
            event("needs_response", intent="pi_1", transaction="du_2").at(30 * DAY),
            event("lost", intent="pi_1", transaction="du_2").at(40 * DAY),
        ),
        "CHARGED_BACK",
    ),
    Sequence(
        "Stripe: a dispute is delivered before the payment, and is won",
        sources.STRIPE_DELIVERY,
        (
            event("unpaid", STRIPE, "cs_1").at(0),
            event("needs_response", intent="pi_1").at(10 * DAY),
            event("succeeded", intent="pi_1").at(60).answered(LATE),
            event("dispute_won", intent="pi_1").at(20 * DAY),
        ),
        "PAID",
    ),
    Sequence(
        "PayPal: a dispute ends in favour of the seller",
        sources.PAYPAL_DISPUTES,
        (
            event("COMPLETED", PAYPAL, intent="O1", transaction="C1"),
            event("disputed", intent="O1", transaction="PP-D-1"),
            event("dispute_won", intent="O1", transaction="PP-D-1"),
        ),
        "PAID",
    ),
    Sequence(
        "PayPal: a claim is escalated, and the capture reversed",
        sources.PAYPAL_DISPUTES,
        (
            event("COMPLETED", PAYPAL, intent="O1", transaction="C1"),
            event("disputed", intent="O1", transaction="PP-D-1"),
            event("charged_back", intent="O1", transaction="PP-D-1"),
            event("COMPLETED", intent="O1", transaction="C1").answered(REFUSED),
        ),
        "CHARGED_BACK",
        {"payment_transaction_id": "PP-D-1"},
    ),
    Sequence(
        "PayPal: the seller refunds a part within the dispute, and the rest is lost",
        sources.PAYPAL_DISPUTES,
        (
            event("COMPLETED", PAYPAL, intent="O1", transaction="C1"),
            event("disputed", intent="O1", transaction="PP-D-1"),
            event("PARTIALLY_REFUNDED", intent="O1", transaction="R1"),
            event("charged_back", intent="O1", transaction="PP-D-1"),
        ),
        "CHARGED_BACK",
    ),
    Sequence(
        "Adyen: a chargeback, its reversal, and a second chargeback",
        sources.ADYEN_DISPUTES,
        (
            event("authorised", ADYEN, intent="psp1").at(0),
            event("captured", intent="psp1").at(DAY),
            event("NOTIFICATION_OF_CHARGEBACK", intent="psp1", transaction="d1").at(30 * DAY),
            event("CHARGEBACK", intent="psp1", transaction="d1").at(31 * DAY),
            event("CHARGEBACK_REVERSED", intent="psp1", transaction="d1").at(40 * DAY),
            event("SECOND_CHARGEBACK", intent="psp1", transaction="d1").at(90 * DAY),
        ),
        "CHARGED_BACK",
        {"payment_transaction_id": "d1"},
    ),
    Sequence(
        "Adyen: the chargeback is delivered again after its reversal",
        sources.ADYEN_DISPUTES,
        (
            event("captured", ADYEN, intent="psp1").at(DAY),
            event("CHARGEBACK", intent="psp1", transaction="d1").at(31 * DAY),
            event("CHARGEBACK_REVERSED", intent="psp1", transaction="d1").at(40 * DAY),
            event("CHARGEBACK", intent="psp1", transaction="d1").at(31 * DAY).answered(LATE),
        ),
        "PAID",
    ),
    Sequence(
        "Mollie: charged back, while the payment's status stays paid, and reversed",
        sources.MOLLIE_ISSUE_157,
        (
            event("paid", MOLLIE, intent="tr_1"),
            event("chargeback", intent="tr_1", transaction="chb_1"),
            event("paid", intent="tr_1").answered(REFUSED),
            event("chargeback_reversed", intent="tr_1", transaction="chb_1"),
        ),
        "PAID",
    ),
    Sequence(
        "AllSecure: a chargeback without a key is delivered again after its reversal",
        sources.IXOPAY_CALLBACKS,
        (
            event("DEBIT", ALLSECURE, intent="u1"),
            event("CHARGEBACK", intent="u3"),
            event("CHARGEBACK-REVERSAL", intent="u4"),
            event("CHARGEBACK", intent="u3").answered(NOT_CURRENT),
        ),
        "PAID",
        {"payment_intent_id": "u4"},
    ),
)
