"""What the rules get wrong: the state is the one that is true at the provider."""

from typing import Final

from tests.support.provider_sequences import sources
from tests.support.provider_sequences.sequence import (
    ADYEN,
    DAY,
    PAYPAL,
    STRIPE,
    Sequence,
    event,
)

DISPUTED: Final = (
    # The scheme rejects a capture for a technical reason, and Adyen captures again by itself. The
    # rules take no plain PAID of the own attempt after RETURNED, for the sake of pollers.
    Sequence(
        "Adyen: a capture fails, and Adyen captures again",
        sources.ADYEN_FAILURES,
        (
            event("authorised", ADYEN, intent="psp1").at(0),
            event("captured", intent="psp1", transaction="m1").at(DAY),
            event("CAPTURE_FAILED", intent="psp1", transaction="m1").at(3 * DAY),
            event("captured", intent="psp1", transaction="m1").at(5 * DAY),
        ),
        "PAID",
    ),
    # The first capture stands. The rules know the order's state, and not its captures.
    Sequence(
        "Adyen: the second of two captures fails",
        sources.ADYEN_FAILURES,
        (
            event("authorised", ADYEN, intent="psp1"),
            event("captured", intent="psp1", transaction="m1").totals(captured=4_000),
            event("captured", intent="psp1", transaction="m2").totals(captured=10_000),
            event("CAPTURE_FAILED", intent="psp1", transaction="m2").totals(captured=4_000),
        ),
        "PAID",
        {"captured_amount": 4_000},
        amounts_disagree=True,
    ),
    # An event that keeps the state does not move the order's time, so that the reversal of what
    # came before it is not late.
    Sequence(
        "Adyen: the second chargeback is delivered before the first one's reversal",
        sources.ADYEN_DISPUTES,
        (
            event("captured", ADYEN, intent="psp1").at(0),
            event("CHARGEBACK", intent="psp1", transaction="d1").at(10 * DAY),
            event("SECOND_CHARGEBACK", intent="psp1", transaction="d1").at(30 * DAY),
            event("CHARGEBACK_REVERSED", intent="psp1", transaction="d1").at(20 * DAY),
        ),
        "CHARGED_BACK",
    ),
    Sequence(
        "Stripe: an intent fails twice, and the processing between is delivered last",
        sources.STRIPE_DELIVERY,
        (
            event("failed", STRIPE, intent="pi_1").at(10),
            event("failed", intent="pi_1").at(30),
            event("processing", intent="pi_1").at(20),
        ),
        "FAILED",
    ),
    # The order keeps one dispute, and not one for each capture.
    Sequence(
        "Adyen: two captures are charged back, and one chargeback is reversed",
        sources.ADYEN_DISPUTES,
        (
            event("captured", ADYEN, intent="psp1", transaction="m1").at(0),
            event("captured", intent="psp1", transaction="m2").at(DAY),
            event("CHARGEBACK", intent="psp1", transaction="d1").at(10 * DAY),
            event("CHARGEBACK", intent="psp1", transaction="d2").at(11 * DAY),
            event("CHARGEBACK_REVERSED", intent="psp1", transaction="d1").at(20 * DAY),
        ),
        "CHARGED_BACK",
    ),
    # The state before the dispute stays what it was when the dispute began.
    Sequence(
        "Stripe: a refund fails while the order is disputed, and the dispute is won",
        sources.STRIPE_REFUNDS,
        (
            event("succeeded", STRIPE, intent="pi_1").at(0),
            event("refunded", intent="pi_1", transaction="re_1").at(DAY),
            event("needs_response", intent="pi_1", transaction="du_1").at(2 * DAY),
            event("refund_failed", intent="pi_1", transaction="re_1").at(3 * DAY),
            event("dispute_won", intent="pi_1", transaction="du_1").at(20 * DAY),
        ),
        "PAID",
    ),
    # COMPLETED of an order at PayPal says that there is a capture, not that it is paid. The word is
    # the same as a completed capture's: the caller has to send the capture's.
    Sequence(
        "PayPal: the order is completed, and its capture is pending, then denied",
        sources.PAYPAL_ORDERS,
        (
            event("APPROVED", PAYPAL, intent="O1"),
            event("COMPLETED", intent="O1"),
            event("PENDING", intent="O1", transaction="C1"),
            event("DENIED", intent="O1", transaction="C1"),
        ),
        "FAILED",
    ),
)
