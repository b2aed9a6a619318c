"""The commented scenario that ``fedleak init`` writes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fedleak.errors import ResourceError


def write_template(path: Path) -> None:
    """Write the template to a new file.

    Raises:
        ResourceError: The file exists or cannot be written.
    """
    content = resources.files("fedleak.scenario").joinpath("template.toml").read_bytes()
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise ResourceError(f"{path} exists already; name another file") from None
    except FileNotFoundError:
        raise ResourceError(
            f"cannot write {path}: there is no directory {path.parent}; make it first"
        ) from None
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error
