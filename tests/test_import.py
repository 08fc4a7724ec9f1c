"""What the package loads and shows."""

from __future__ import annotations

import subprocess
import sys

import pyrobnn as pb

CODE = "import sys, pyrobnn; print(*sorted({'matplotlib', 'scipy', 'torchvision', 'sklearn'} & set(sys.modules)))"


def test_importing_the_package_loads_neither_matplotlib_nor_scipy() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_every_public_name_is_there() -> None:
    assert sorted(pb.__all__) == sorted(set(pb.__all__))
    assert all(hasattr(pb, name) for name in pb.__all__)
