"""Safe primitives: an array goes in, an array of the same dtype comes out.

Each is equal to its jax.numpy / jax.nn twin wherever that one is right, and finite
with finite derivatives where it is not; `losses` and `layers` are built on them.
"""

from jaxsafe.ops._algebraic import softsign as softsign
from jaxsafe.ops._algebraic import squareplus as squareplus
from jaxsafe.ops._angle import arccos as arccos
from jaxsafe.ops._angle import arcsin as arcsin
from jaxsafe.ops._attention import dot_product_attention as dot_product_attention
from jaxsafe.ops._cast import saturate_cast as saturate_cast
from jaxsafe.ops._cosine import cosine_similarity as cosine_similarity
from jaxsafe.ops._divergence import kl_div as kl_div
from jaxsafe.ops._divergence import rel_entr as rel_entr
from jaxsafe.ops._exp import exp as exp
from jaxsafe.ops._exp import expm1 as expm1
from jaxsafe.ops._exp import log1mexp as log1mexp
from jaxsafe.ops._exp import log_expm1 as log_expm1
from jaxsafe.ops._gated import mish as mish
from jaxsafe.ops._gated import silu as silu
from jaxsafe.ops._gelu import gelu as gelu
from jaxsafe.ops._global_norm import global_norm as global_norm
from jaxsafe.ops._linalg import cholesky as cholesky
from jaxsafe.ops._linalg import solve as solve
from jaxsafe.ops._linear_units import celu as celu
from jaxsafe.ops._linear_units import elu as elu
from jaxsafe.ops._linear_units import selu as selu
from jaxsafe.ops._log import log as log
from jaxsafe.ops._log import log1p as log1p
from jaxsafe.ops._log import logit as logit
from jaxsafe.ops._logaddexp import logaddexp as logaddexp
from jaxsafe.ops._logaddexp import logsubexp as logsubexp
from jaxsafe.ops._logmeanexp import cumlogsumexp as cumlogsumexp
from jaxsafe.ops._logmeanexp import logmeanexp as logmeanexp
from jaxsafe.ops._logsumexp import logsumexp as logsumexp
from jaxsafe.ops._mean import mean as mean
from jaxsafe.ops._mean import std as std
from jaxsafe.ops._mean import var as var
from jaxsafe.ops._norm import norm as norm
from jaxsafe.ops._normal import log_ndtr as log_ndtr
from jaxsafe.ops._normalize import normalize as normalize
from jaxsafe.ops._polar import arctan2 as arctan2
from jaxsafe.ops._polar import hypot as hypot
from jaxsafe.ops._power import divide as divide
from jaxsafe.ops._power import power as power
from jaxsafe.ops._power import reciprocal as reciprocal
from jaxsafe.ops._root import rsqrt as rsqrt
from jaxsafe.ops._root import sqrt as sqrt
from jaxsafe.ops._sigmoid import log_sigmoid as log_sigmoid
from jaxsafe.ops._sigmoid import sigmoid as sigmoid
from jaxsafe.ops._sigmoid import softplus as softplus
from jaxsafe.ops._sinc import sinc as sinc
from jaxsafe.ops._softmax import log_softmax as log_softmax
from jaxsafe.ops._softmax import softmax as softmax
from jaxsafe.ops._spectral import eigh as eigh
from jaxsafe.ops._spectral import svd as svd
from jaxsafe.ops._standardize import standardize as standardize
from jaxsafe.ops._tanh import log_cosh as log_cosh
from jaxsafe.ops._tanh import tanh as tanh
from jaxsafe.ops._where import where as where
from jaxsafe.ops._xlogy import entr as entr
from jaxsafe.ops._xlogy import xlog1py as xlog1py
from jaxsafe.ops._xlogy import xlogy as xlogy

__all__ = [
    "arccos",
    "arcsin",
    "arctan2",
    "celu",
    "cholesky",
    "cosine_similarity",
    "cumlogsumexp",
    "divide",
    "dot_product_attention",
    "eigh",
    "elu",
    "entr",
    "exp",
    "expm1",
    "gelu",
    "global_norm",
    "hypot",
    "kl_div",
    "log",
    "log1mexp",
    "log1p",
    "log_cosh",
    "log_expm1",
    "log_ndtr",
    "log_sigmoid",
    "log_softmax",
    "logaddexp",
    "logit",
    "logmeanexp",
    "logsubexp",
    "logsumexp",
    "mean",
    "mish",
    "norm",
    "normalize",
    "power",
    "reciprocal",
    "rel_entr",
    "rsqrt",
    "saturate_cast",
    "selu",
    "sigmoid",
    "silu",
    "sinc",
    "softmax",
    "softplus",
    "softsign",
    "solve",
    "sqrt",
    "squareplus",
    "standardize",
    "std",
    "svd",
    "tanh",
    "var",
    "where",
    "xlog1py",
    "xlogy",
]
