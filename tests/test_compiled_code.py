import os
import subprocess
import sys
from pathlib import Path

from detection3d.compiled_code import forget_stale_code

CALLEE = "import numba\n\n\n@numba.njit(cache=True)\ndef value():\n    return {}\n"
CALLER = (
    "import numba\nfrom package.callee import value\n\n\n"
    "@numba.njit(cache=True)\ndef twice():\n    return 2 * value()\n"
)


def test_a_change_of_a_called_function_reaches_its_callers(tmp_path: Path) -> None:
    """numba alone goes on with the old one, which this holds too: else the module would not be needed."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "caller.py").write_text(CALLER)
    (package / "other.py").write_text("nothing = 0\n")
    write(package / "callee.py", CALLEE.format(1), 1_000_000_000)
    for name in ("caller", "other", "__init__"):
        os.utime(package / f"{name}.py", (1_000_000_000, 1_000_000_000))
    assert run(tmp_path) == 2
    assert forget_stale_code(package) == 0
    write(package / "other.py", "nothing = 1\n", 3_000_000_000)
    assert forget_stale_code(package) == 0, "nothing compiled stands in it"
    write(package / "callee.py", CALLEE.format(10), 3_000_000_000)
    assert run(tmp_path) == 2, "numba alone"
    assert forget_stale_code(package) == 2
    assert run(tmp_path) == 20


def test_without_compiled_code_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert forget_stale_code(tmp_path) == 0


def write(path: Path, text: str, time: int) -> None:
    path.write_text(text)
    os.utime(path, (time, time))


def run(folder: Path) -> int:
    beside = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    program = "from package.caller import twice; print(twice())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=beside, capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)
