"""Runs the tests, and sums up: python emulator/tests/botocore (with EMULATOR=path of the program)."""

import pathlib
import sys
import unittest

import botocore
from service import Service
from test_constraints import Constraints

tests = unittest.defaultTestLoader.discover(str(pathlib.Path(__file__).parent))
result = unittest.TextTestRunner(verbosity=2).run(tests)
print(
    f"botocore {botocore.__version__}: {result.testsRun} tests, {Constraints.count} cases made from its service model, "
    f"{Service.calls} answers checked against it; {len(result.failures) + len(result.errors)} failures"
)
sys.exit(not (result.wasSuccessful() and result.testsRun))
