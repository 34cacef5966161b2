"""The build backend in pyproject.toml: setuptools does `pip install -e .`, and `pip install .` is refused."""

from typing import NoReturn

from setuptools.build_meta import (  # noqa: F401
    build_editable,
    get_requires_for_build_editable,
    prepare_metadata_for_build_editable,
)

# A copy in site-packages would lack the class lists in data/, and its packages `utils` and `pipeline` would
# replace those of other projects.
REFUSAL = "CSRA runs from its folder and cannot be copied elsewhere: use `pip install -e .` there, with -e"


def get_requires_for_build_wheel(config_settings: dict | None = None) -> NoReturn:
    """Refuse; pip calls this first, before it downloads anything that CSRA depends on."""
    raise SystemExit(REFUSAL)


def build_wheel(wheel_directory: str, config_settings: dict | None = None, *_: str | None) -> NoReturn:
    """Refuse; every build backend has to have this function."""
    raise SystemExit(REFUSAL)


def build_sdist(sdist_directory: str, config_settings: dict | None = None) -> NoReturn:
    """Refuse; every build backend has to have this function, too."""
    raise SystemExit(REFUSAL)
