"""Where the wheel keeps headers and libraries for C++ programs."""

from pathlib import Path

from vlakern.errors import Unsupported

__all__ = ["cmake_prefix"]

FOLDER = Path(__file__).parent / "cpp"


def cmake_prefix() -> str:
    """The folder for ``CMAKE_PREFIX_PATH``, in which ``find_package(vlakern)`` finds the package.

    Raises:
        Unsupported: it was not installed with this package.
    """
    if not (FOLDER / "lib/cmake/vlakern/vlakernConfig.cmake").is_file():
        raise Unsupported(
            f"{FOLDER} holds no C++ package: run `pip install .`, or `cmake --install` of a build"
            " with -DVLAKERN_PYTHON=OFF into a prefix of your own"
        )
    return str(FOLDER)
