"""A C program with threads of its own calls back into several interpreters.

The program, rwembed_host.c, is compiled here.  With CPython 3.13.5 its callbacks
run in the main interpreter, under the wrong lock: it crashes or hangs.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import unittest
from test import support
from test.support import import_helper, os_helper

import_helper.import_module('ctypes')
import_helper.import_module('_testrwgilstate')

SOURCE = os.path.join(os.path.dirname(__file__), 'rwembed_host.c')


def words(name):
    return shlex.split(sysconfig.get_config_var(name) or '')


def find_library():
    name = sysconfig.get_config_var('LDLIBRARY')
    if not sysconfig.is_python_build():
        return os.path.join(sysconfig.get_config_var('LIBDIR'), name)
    return os.path.join(sysconfig.get_config_var('projectbase'), name)


@support.requires_subprocess()
@unittest.skipUnless(sys.platform == 'linux', 'needs pthread_timedjoin_np()')
@unittest.skipUnless(os.path.exists(SOURCE), 'needs rwembed_host.c')
class HostTests(unittest.TestCase):

    maxDiff = None

    def compile(self):
        library = find_library()
        if not os.path.exists(library):
            self.skipTest('needs libpython')
        program = os.path.join(os.path.abspath(os_helper.TESTFN), 'host')
        includes = {sysconfig.get_path('include'), sysconfig.get_path('platinclude'),
                    os.path.dirname(sysconfig.get_config_h_filename())}
        command = [*words('CC'), '-pthread', *words('BASECFLAGS'), *words('OPT'),
                   *words('LDFLAGS'), *words('LINKFORSHARED'),
                   *[f'-I{path}' for path in includes], SOURCE, '-o', program,
                   # Extension modules use functions that the host does not.
                   '-Wl,--whole-archive', library, '-Wl,--no-whole-archive',
                   f'-Wl,-rpath,{os.path.dirname(library)}',
                   *words('LIBS'), *words('SYSLIBS'), *words('MODLIBS')]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as exc:
            self.skipTest(f'needs a C compiler: {exc}')
        except subprocess.CalledProcessError as exc:
            self.fail(f'{shlex.join(command)}:\n{exc.stderr}')
        return program

    def test_host(self):
        with os_helper.temp_dir(os_helper.TESTFN):
            program = self.compile()
            for interps, threads, loops in (1, 1, 1), (1, 4, 50), (4, 4, 50):
                with self.subTest(interps=interps, threads=threads):
                    proc = subprocess.run(
                        [program, sys.executable, str(interps), str(threads),
                         str(loops)],
                        capture_output=True, text=True,
                        timeout=support.LONG_TIMEOUT)
                    self.assertEqual((proc.returncode, proc.stderr), (0, ''))


if __name__ == '__main__':
    unittest.main()
