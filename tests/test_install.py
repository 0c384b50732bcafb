"""./python as it was built, and as it is installed: pip, venv, wheels from source and from the index."""
import os
import pathlib
import re
import shutil
import sys

import pytest

from conftest import TOP, run, write

PYTHON = TOP / "python"
NO_NETWORK = re.compile(r"No matching distribution|ConnectionError|Failed to establish|Temporary failure|"
                        r"Network is unreachable|Read timed out|ProxyError")

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="./python is not built")


@pytest.fixture(scope="module")
def clean():
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MAKE", "MFLAGS"))}


def pip_install(python, *words, env, cwd=None):
    done = run(python, "-m", "pip", "install", "--no-input", *words, env=env, cwd=cwd, timeout=400)
    if done.returncode and NO_NETWORK.search(done.stdout):
        pytest.skip("no network, or no package index: " + done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout


def say(python, expression, env, *options):
    done = run(python, *options, "-c", f"import sys, sysconfig; print({expression})", env=env, cwd="/")
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


# --- In the build -----------------------------------------------------------

def test_built_python_knows_its_tree(clean):
    assert say(PYTHON, "sys.version_info[:3]", clean) == "(3, 13, 5)"
    assert say(PYTHON, "sysconfig.is_python_build()", clean) == "True"
    assert pathlib.Path(say(PYTHON, "sysconfig.get_config_var('srcdir')", clean)).resolve() == TOP / "build" / "src"


def test_built_python_runs_tests(clean):
    done = run(PYTHON, "-m", "test", "test_json", "--timeout=120", env=clean)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("options, variables", [(["-X", "rwgil=bad"], {}), ([], {"PYTHON_RWGIL": "bad"})])
def test_bad_lock_mode(clean, options, variables):
    done = run(PYTHON, *options, "-c", "print('ran')", env={**clean, **variables})
    # A status, not a signal: an error and no crash.
    assert done.returncode == 1, done.stdout
    assert "rwgil" in done.stdout.lower()
    assert "pair" in done.stdout and "global" in done.stdout
    assert "ran" not in done.stdout.split()


@pytest.mark.parametrize("mode", ["pair", "global"])
def test_lock_modes(clean, mode):
    assert say(PYTHON, "sys._xoptions['rwgil']", clean, "-X", f"rwgil={mode}") == mode


# --- Installed --------------------------------------------------------------

@pytest.fixture(scope="module")
def installed(tmp_path_factory, clean):
    """bin/python3.13 of an installation, put aside with DESTDIR."""
    destination = tmp_path_factory.mktemp("dest")
    done = run(sys.executable, TOP / "Tools" / "upstream" / "build.py", "install", f"DESTDIR={destination}",
               env=clean, timeout=600)
    assert done.returncode == 0, done.stdout
    prefix = say(PYTHON, "sysconfig.get_config_var('prefix')", clean)
    yield destination / prefix.lstrip("/") / "bin" / "python3.13"
    shutil.rmtree(destination)


@pytest.fixture
def venv(installed, tmp_path, clean):
    folder = tmp_path / "venv"
    done = run(installed, "-m", "venv", folder, env=clean)
    assert done.returncode == 0, done.stdout
    return folder / "bin" / "python"


def test_installed_sysconfig(installed, clean):
    prefix = installed.parents[1]
    assert say(installed, "sys.prefix", clean) == str(prefix)
    assert say(installed, "sysconfig.is_python_build()", clean) == "False"
    assert say(installed, "sysconfig.get_path('stdlib')", clean) == str(prefix / "lib" / "python3.13")
    include = pathlib.Path(say(installed, "sysconfig.get_path('include')", clean))
    assert (include / "Python.h").exists() and (include / "pyconfig.h").exists()
    suffix = say(installed, "sysconfig.get_config_var('EXT_SUFFIX')", clean)
    assert suffix == say(PYTHON, "sysconfig.get_config_var('EXT_SUFFIX')", clean)


def test_everything_of_ours_is_installed(installed):
    lib, include = installed.parents[1] / "lib" / "python3.13", installed.parents[1] / "include"
    include = next(include.iterdir())
    missing = [p.relative_to(TOP) for p in (TOP / "Lib").rglob("*.py") if not (lib / p.relative_to(TOP / "Lib")).exists()]
    missing += [p.relative_to(TOP) for p in (TOP / "Include").rglob("*.h")
                if not (include / p.relative_to(TOP / "Include")).exists()]
    assert not missing


def test_installed_pip(installed, clean):
    prefix = pathlib.Path(say(PYTHON, "sysconfig.get_config_var('prefix')", clean))
    if (prefix / "lib" / "python3.13" / "site-packages" / "pip").exists():
        pytest.skip(f"ensurepip finds the pip that is in {prefix} already, and puts none under DESTDIR")
    done = run(installed, "-m", "pip", "--version", env=clean)
    assert done.returncode == 0 and str(installed.parents[1]) in done.stdout


def test_wheel_from_source(venv, tmp_path, clean):
    source = tmp_path / "source"
    write(source, {
        "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
                          '[project]\nname = "answer"\nversion = "1.0"\n',
        "setup.py": 'from setuptools import Extension, setup\n'
                    'setup(ext_modules=[Extension("answer", ["answer.c"])])\n',
        "answer.c": """
#include <Python.h>
static PyObject *get(PyObject *module, PyObject *unused) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"get", get, METH_NOARGS, NULL}, {NULL}};
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "answer", NULL, 0, methods};
PyMODINIT_FUNC PyInit_answer(void) { return PyModuleDef_Init(&def); }
"""})
    pip_install(venv, source, env=clean)
    assert say(venv, "__import__('answer').get()", clean) == "42"


def test_numpy_in_a_venv_of_the_built_python(tmp_path, clean):
    folder = tmp_path / "venv"
    done = run(PYTHON, "-m", "venv", folder, env=clean)
    assert done.returncode == 0, done.stdout
    python = folder / "bin" / "python"
    pip_install(python, "--only-binary=:all:", "numpy", env=clean)
    script = ("import numpy as np; a = np.arange(12.0).reshape(3, 4); b = a @ a.T;"
              "assert np.allclose(np.linalg.inv(b + np.eye(3)) @ (b + np.eye(3)), np.eye(3));"
              "print(int(b.sum()), np.array([1, 2], dtype='i8').tobytes().hex()[:2])")
    done = run(python, "-c", script, env=clean)
    assert done.returncode == 0, done.stdout
    assert done.stdout.split() == ["1134", "01"]
