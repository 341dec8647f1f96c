"""Strategies for hypothesis."""

from hypothesis import strategies as st

LIMITS = {
    "payment_provider": 50,
    "payment_session_id": 255,
    "payment_intent_id": 255,
    "payment_idempotency_key": 255,
    "payment_status": 50,
    "payment_transaction_id": 255,
}
"""The longest value of each payment field, in characters."""

# Every character that PostgreSQL can store: no NUL, and no lone surrogate, which is no character.
_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")

payments = st.fixed_dictionaries(
    {},
    optional={
        name: st.text(_characters, min_size=1, max_size=limit) for name, limit in LIMITS.items()
    },
).filter(bool)
"""Some of the payment fields, at least one, with values that the rules allow."""
