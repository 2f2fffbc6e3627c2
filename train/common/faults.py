"""What is wrong with a video."""


class ClipError(ValueError):
    """A video file that can't be used; the message names it and says why."""


def is_passing(error: ClipError) -> bool:
    """Whether a video may be read at another time: a want of rights, memory or a network says nothing of the file."""
    return isinstance(error.__context__, (OSError, MemoryError))


class Fault(Exception):
    """Why a video can't be used; whoever opened the file makes a ClipError with its name of it."""
