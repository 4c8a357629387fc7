"""What can go wrong for a user of the audit, one class per cause.

Every message is one line that says what was got, what was expected, where, and what to do. `audit.cli.run` turns these
into that line and exit code 65; anything else that escapes is a bug, exit code 70.
"""


class AuditError(Exception):
    """Base of all errors that a user can cause and mend."""


class RunError(AuditError):
    """What a run left is missing, damaged, or contradicts itself."""


class OutputError(AuditError):
    """A result can't be written where it should go."""


class LedgerError(AuditError):
    """A ledger can't be written or read, or was changed after it was written."""


class SplitError(AuditError):
    """A shard, a tokenizer or a data folder is missing, damaged, or of another format."""


class ManifestError(AuditError):
    """A manifest is damaged, or the data are not what it says."""


class RulesetError(AuditError):
    """A rule set can't be read, or says something that this version doesn't know."""
