# Interpreters import the functions that tests send from here: keep it light.

def load_tests(loader, tests, pattern):
    import os
    from test import support

    return support.load_package_tests(
        os.path.dirname(__file__), loader, tests, pattern)
