"""`python -m jaxsafe`: is this machine honest, and does a fault show again here."""

import argparse
import sys
from collections.abc import Sequence

import jaxsafe
from jaxsafe import report

