#!/usr/bin/env python3
"""Apache with mod_wsgi: do several application groups work, and in parallel?

    python3 Tools/embedding/mod_wsgi.py PREFIX/bin/python3 [--work DIR] [--seconds N]

PREFIX is where a shared-library build of RWPython is installed:

    ./configure --enable-shared --prefix=PREFIX && make && make install

Needed besides: Apache with its development files, and wrk (on Debian: apache2,
apache2-dev, wrk).  mod_wsgi, Flask and NumPy come from PyPI, into a virtual
environment in DIR (default: a temporary folder), which is used again if it exists.

A Flask application that uses NumPy runs in GROUPS application groups of one daemon
process, each in a subinterpreter.  All are asked, and their answers checked, then put
under load, with WSGIPerInterpreterGIL off and on.  (Off, the groups share one lock, as
in any Python.  NumPy can't be loaded more than once then, so the same is done without it,
to compare.)  A line for each says:

    requests   answered by all groups together
    errors     answers that were not 200, and connections that broke
    per second
    cores      processor time of the daemon process by time on the clock

The exit status is 0 if there was no error, and if the groups used more than
MIN_CORES cores with the directive on.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

GROUPS = 4
MIN_CORES = 1.4

APPLICATION = '''
import _interpreters
import flask
{numpy}

app = application = flask.Flask(__name__)

@app.route('/work')
def work():
    return dict(interpreter=_interpreters.get_current()[0], total=total(),
                squares=sum(i * i for i in range(100_000)))
'''

WITH_NUMPY = '''
import numpy

def total():
    matrix = numpy.arange(400.0).reshape(20, 20)
    return sum(float((matrix @ matrix).trace()) for _ in range(100))
'''

WITHOUT_NUMPY = '''
def total():
    matrix = [[20.0 * i + j for j in range(20)] for i in range(20)]
    return 100 * sum(row[k] * matrix[k][i]
                     for i, row in enumerate(matrix) for k in range(20))
'''

EXPECTED = {'total': 100 * 16452100.0, 'squares': 333328333350000}

CONFIG = '''
ServerRoot "{work}"
ServerName localhost
Listen 127.0.0.1:{port}
PidFile "{work}/httpd.pid"
ErrorLog "{work}/error.log"
LogLevel warn
User {user}
Group {group}
{mpm}
LoadModule authz_core_module {modules}/mod_authz_core.so
{wsgi}
WSGIPerInterpreterGIL {gil}
WSGISocketPrefix {work}/wsgi
WSGIDaemonProcess app processes=1 threads=8 display-name=(wsgi:rwpython)
<Directory "{work}">
    Require all granted
</Directory>
{aliases}
'''


def find_apache():
    apxs = shutil.which('apxs') or shutil.which('apxs2')
    if apxs is None or shutil.which('wrk') is None:
        sys.exit('missing: apxs or wrk; on Debian: apt-get install '
                 'apache2 apache2-dev wrk')

    def query(name):
        return subprocess.run([apxs, '-q', name], check=True, text=True,
                              capture_output=True).stdout.strip()

    return (os.path.join(query('SBINDIR'), query('PROGNAME')), query('LIBEXECDIR'))


def find_library(python):
    """PREFIX/lib need not be one of the folders in which the loader looks."""
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(python))), 'lib')
    others = os.environ.get('LD_LIBRARY_PATH')
    os.environ['LD_LIBRARY_PATH'] = f'{folder}:{others}' if others else folder


def make_environment(python, work):
    """Return the virtual environment's python."""
    env = os.path.join(work, 'env')
    env_python = os.path.join(env, 'bin', 'python3')
    if not os.path.exists(env_python):
        subprocess.run([python, '-m', 'venv', env], check=True)
    subprocess.run([env_python, '-m', 'pip', 'install', '-q',
                    '--disable-pip-version-check', 'mod_wsgi', 'flask', 'numpy'],
                   check=True)
    return env_python


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def write_config(work, env_python, modules, port, gil):
    express = os.path.join(os.path.dirname(env_python), 'mod_wsgi-express')
    wsgi = subprocess.run([express, 'module-config'], check=True,
                          capture_output=True, text=True).stdout
    mpm = os.path.join(modules, 'mod_mpm_event.so')
    aliases = '\n'.join(
        f'WSGIScriptAlias /group{i} "{work}/application.py" '
        f'process-group=app application-group=group{i}' for i in range(GROUPS))
    root = os.geteuid() == 0
    with open(os.path.join(work, 'httpd.conf'), 'w') as file:
        file.write(CONFIG.format(
            work=work, port=port, modules=modules, wsgi=wsgi, gil=gil,
            aliases=aliases,
            user='nobody' if root else f'#{os.geteuid()}',
            group='nogroup' if root else f'#{os.getegid()}',
            mpm=f'LoadModule mpm_event_module {mpm}' if os.path.exists(mpm) else ''))
    with open(os.path.join(work, 'application.py'), 'w') as file:
        file.write(APPLICATION.format(
            numpy=WITH_NUMPY if gil == 'On' else WITHOUT_NUMPY))


def get(port, group):
    url = f'http://127.0.0.1:{port}/group{group}/work'
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def wait_for(port, apache):
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(('127.0.0.1', port), 1).close()
            return
        except OSError:
            if apache.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError('Apache does not answer') from None
            time.sleep(0.1)


@contextlib.contextmanager
def running(program, work, port):
    environ = dict(os.environ, OPENBLAS_NUM_THREADS='1')
    apache = subprocess.Popen(
        [program, '-f', os.path.join(work, 'httpd.conf'), '-DFOREGROUND'], env=environ)
    try:
        wait_for(port, apache)
        yield apache
    finally:
        apache.send_signal(signal.SIGTERM)
        try:
            apache.wait(30)
        except subprocess.TimeoutExpired:
            apache.kill()
            raise RuntimeError('Apache does not end') from None


def daemon_of(apache):
    """The process that runs the interpreters."""
    for pid in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(OSError):
            with open(f'/proc/{pid}/stat') as file:
                parent = int(file.read().rpartition(')')[2].split()[1])
            with open(f'/proc/{pid}/cmdline') as file:
                if parent == apache.pid and '(wsgi:rwpython)' in file.read():
                    return int(pid)
    raise RuntimeError('no daemon process')


def processor_time(pid):
    with open(f'/proc/{pid}/stat') as file:
        fields = file.read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def load(port, seconds):
    """Put all groups under load; return the counts of answers and errors."""
    clients = [subprocess.Popen(
        ['wrk', '-t1', '-c2', f'-d{seconds}s', '--timeout', '30s',
         f'http://127.0.0.1:{port}/group{i}/work'],
        stdout=subprocess.PIPE, text=True) for i in range(GROUPS)]
    requests = errors = 0
    for client in clients:
        report = client.communicate(timeout=seconds + 60)[0]
        requests += int(re.search(r'(\d+) requests in', report)[1])
        for pattern in (r'Non-2xx or 3xx responses: (\d+)',
                        r'connect (\d+), read (\d+), write (\d+), timeout (\d+)'):
            match = re.search(pattern, report)
            errors += sum(map(int, match.groups())) if match else 0
    return requests, errors


def measure(program, work, env_python, modules, gil, seconds):
    """Return the number of errors, and the cores used."""
    port = free_port()
    write_config(work, env_python, modules, port, gil)
    with running(program, work, port) as apache:
        seen = set()
        for i in range(GROUPS):
            answer = get(port, i)
            seen.add(answer.pop('interpreter'))
            if answer != EXPECTED:
                raise RuntimeError(f'group {i} is wrong: {answer}')
        if len(seen) != GROUPS or 0 in seen:
            raise RuntimeError(f'not an interpreter for each group: {seen}')
        load(port, 1)
        pid = daemon_of(apache)
        used, begun = processor_time(pid), time.monotonic()
        requests, errors = load(port, seconds)
        elapsed = time.monotonic() - begun
        cores = (processor_time(pid) - used) / elapsed
        if daemon_of(apache) != pid:
            raise RuntimeError('the daemon process has died and come back')
    print(f'{gil:<8} {requests:>8} {errors:>7} {requests / elapsed:>11.1f} '
          f'{cores:>6.2f}', flush=True)
    return errors, cores


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('python')
    parser.add_argument('--work')
    parser.add_argument('--seconds', type=int, default=10)
    args = parser.parse_args()
    find_library(args.python)
    program, modules = find_apache()
    work = os.path.abspath(args.work or tempfile.mkdtemp(prefix='mod_wsgi-'))
    os.makedirs(work, exist_ok=True)
    os.chmod(work, 0o755)
    env_python = make_environment(args.python, work)
    print(f'{"own lock":<8} {"requests":>8} {"errors":>7} {"per second":>11} '
          f'{"cores":>6}')
    try:
        errors_off, _ = measure(program, work, env_python, modules, 'Off', args.seconds)
        errors_on, cores = measure(program, work, env_python, modules, 'On', args.seconds)
    except (RuntimeError, urllib.error.URLError) as exc:
        print(f'{exc}; the end of {work}/error.log:', file=sys.stderr)
        with open(os.path.join(work, 'error.log')) as file:
            sys.stderr.writelines(file.readlines()[-30:])
        return 1
    return int(bool(errors_off or errors_on) or cores < MIN_CORES)


if __name__ == '__main__':
    sys.exit(main())
