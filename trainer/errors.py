"""What can go wrong for a user, one class per cause.

Every message is one line that says what was got, what was expected, where, and what to do. The command line turns
these into that line and an exit code (`trainer.__main__`); anything else that escapes is a bug and shows its trace.
"""


class GolfError(Exception):
    """Base of all errors that a user can cause and mend."""


class RecipeError(GolfError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(GolfError):
    """A document source, tokenizer or token shard is missing, damaged, or does not fit the recipe."""


class ArtifactError(GolfError):
    """The bytes of an artifact or checkpoint are damaged, of another version, or do not fit the recipe."""


class ResourceError(GolfError):
    """The machine lacks what the recipe asks for: disk, memory, devices, processes."""


def quoted(name: str) -> str:
    """The beginning of a name as an error shows it: it may come from anywhere, and an error is one short line."""
    return repr(name[:20])
