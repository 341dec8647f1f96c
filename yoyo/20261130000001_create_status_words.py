"""What the words of payment statuses mean: the table by which orders are classified.

The meanings are those of ``status_words.toml`` at this version. `listings statuses apply` replaces
them, after the table has changed.
"""

from psycopg import Connection
from yoyo import step

from persistence.migration_support import set_lock_timeout

__depends__ = {"20261125000001_grant_rights_to_listings_app"}
__transactional__ = False

_WORDS = """
    CREATE TABLE IF NOT EXISTS status_words (
        state    SMALLINT NOT NULL,
        word     TEXT     NOT NULL,
        reverses TEXT,

        CONSTRAINT status_words_pkey PRIMARY KEY (word),
        CONSTRAINT status_words_state_known CHECK (state BETWEEN 1 AND 14)
    )
"""

# By the number of the state, in the spelling in which words are compared. The words of reversals
# stand for paid, when nothing is known of what they reverse.
_STATES = {
    2: (
        "awaitingpayment created initiated new notpaid open payment.pending "
        "paymentintent.created paymentpending pending pendingpayment requiresconfirmation "
        "requirespaymentmethod saved unpaid waiting waitingforpayment"
    ),
    3: (
        "actionrequired approved challengeshopper checkout.order.approved identifyshopper "
        "payeractionrequired paymentintent.requiresaction presenttoshopper redirect "
        "redirectshopper requiresaction requiresauthentication"
    ),
    4: (
        "charge.pending checkout.session.completed complete inprogress "
        "payment.capture.pending paymentintent.processing paymentprocessing processing "
        "processingpayment received sentforsettle"
    ),
    5: (
        "accepted authorised authorized fraudriskaccepted incrementalauthorization "
        "partiallyauthorised partiallyauthorized payment.authorization.created "
        "payment.authorized paymentauthorised paymentauthorized "
        "paymentintent.amountcapturableupdated preauthorised preauthorize preauthorized "
        "requirescapture"
    ),
    6: (
        "charge.failed checkout.session.asyncpaymentfailed declined denied error failed "
        "fraudriskrejected payment.capture.declined payment.capture.denied payment.failed "
        "paymentdeclined paymenterror paymentfailed paymentintent.paymentfailed refused "
        "rejected"
    ),
    7: (
        "canceled canceledbycustomer cancelled cancelledbycustomer "
        "checkout.paymentapproval.reversed payment.authorization.voided payment.canceled "
        "paymentcanceled paymentcancelled paymentintent.canceled void voided"
    ),
    8: (
        "charge.expired checkout.session.expired expire expired offerclosed payment.expired "
        "paymentexpired timedout"
    ),
    9: (
        "capture capture.succeeded captured charge.captured "
        "checkout.session.asyncpaymentsucceeded completed debit fullypaid paid partcaptured "
        "partialcaptured partiallycaptured partiallypaid partialpaid partlycaptured "
        "partlypaid partpaid payment.capture.completed payment.paid paymentcompleted "
        "paymentintent.succeeded paymentreceived paymentsucceeded settled succeeded"
    ),
    10: (
        "partiallyrefunded partialrefund partialrefunded partlyrefunded partrefunded "
        "refundedpartially"
    ),
    11: "fullrefund fullyrefunded refund refunded",
    12: (
        "charge.dispute.created charge.dispute.fundswithdrawn customer.dispute.created "
        "dispute disputecreated disputed disputeopened disputeopenedwithchargeback indispute "
        "needsresponse notificationofchargeback requestforinformation waitingforbuyerresponse "
        "waitingforsellerresponse warningneedsresponse warningunderreview"
    ),
    13: (
        "chargeback chargeback.received chargedback disputelost lost payment.capture.reversed "
        "prearbitrationlost resolvedbuyerfavour secondchargeback"
    ),
    14: "capturefailed directdebitreturned paymentreturned returned",
}
_REVERSALS = {
    "contest": (
        "canceledreversal charge.dispute.fundsreinstated chargeback.reversed "
        "chargebackreversal chargebackreversed disputecanceled disputecancelled "
        "disputereversed disputewon issuerresponsetimeframeexpired prearbitrationwon "
        "resolvedsellerfavour warningclosed won"
    ),
    "refund": (
        "refund.canceled refund.failed refundcanceled refundcancelled refundedreversed "
        "refundfailed refundreversed"
    ),
}
_PAID = 9


def create(connection: Connection) -> None:
    """Create the table with its rows."""
    set_lock_timeout(connection)
    rows: list[tuple[int, str, str | None]] = [
        (state, word, None) for state, words in _STATES.items() for word in words.split()
    ]
    rows += [(_PAID, word, what) for what, words in _REVERSALS.items() for word in words.split()]
    with connection.transaction():
        connection.execute(_WORDS)
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO status_words (state, word, reverses) VALUES (%s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                rows,
            )
        connection.execute("GRANT SELECT ON status_words TO listings_app")


def drop(connection: Connection) -> None:
    """Drop the table with its data."""
    set_lock_timeout(connection)
    connection.execute("DROP TABLE IF EXISTS status_words")


step(create, drop)
