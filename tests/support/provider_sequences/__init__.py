"""What providers send for one order, what each event is answered, and what is true at the end.

Each sequence names its source. ``tests.support.provider_sequences.sequence`` has their form.
"""

from typing import Final

from tests.support.provider_sequences.amounts import AMOUNTS
from tests.support.provider_sequences.attempts import ATTEMPTS
from tests.support.provider_sequences.clocks import CLOCKS
from tests.support.provider_sequences.disputed import DISPUTED
from tests.support.provider_sequences.disputes import DISPUTES
from tests.support.provider_sequences.duplicates import DUPLICATES
from tests.support.provider_sequences.keys import KEYS
from tests.support.provider_sequences.lives import LIVES
from tests.support.provider_sequences.refunds import REFUNDS
from tests.support.provider_sequences.sequence import Event, Sequence

SEQUENCES: Final = (
    *(*LIVES, *ATTEMPTS, *DUPLICATES, *REFUNDS, *DISPUTES),
    *(*CLOCKS, *AMOUNTS, *KEYS),
)

__all__ = ["DISPUTED", "SEQUENCES", "Event", "Sequence"]
