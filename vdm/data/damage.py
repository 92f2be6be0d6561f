"""Damaged data: what a library says of damaged bytes becomes one line."""

from collections.abc import Iterator
import contextlib
import errno

from vdm.errors import UserError, one_line

# What is wrong with a path. Any other error number is of the machine, such as too many open files, and then
# nothing is known of the data.
OF_PATHS = {
    getattr(errno, name)
    for name in ("ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "EINVAL", "ENXIO")
}


class Damaged(UserError):
    """An example cannot be read. A Split's `read` raises it, and config.data.skip_damaged goes on without."""


@contextlib.contextmanager
def decoding(what: str) -> Iterator[None]:
    """Raises Damaged, "`what`: why", for all that a decoder raises of bytes that are damaged.

    Decoders raise exceptions of many kinds, so that it is every kind here, and within it only their calls
    belong. What the machine lacks is raised as it is: the data may be whole.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None and error.errno not in OF_PATHS:
            raise
        raise Damaged(f"{what}: {error.strerror or one_line(error) or 'it is damaged'}.") from error
    except Exception as error:
        raise Damaged(f"{what}: {one_line(error) or type(error).__name__}.") from error
