"""A fault goes into a file and shows again, without code, pickle or import."""

import json
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxsafe import diagnose
from jaxsafe.diagnose import _bundle


class Layer(NamedTuple):
    w: jax.Array
    b: jax.Array


def model(params, batch, key, scale=1.0, *, activation="log", flip=False):
    jax.debug.print("seen by nobody")
    noise = jax.random.normal(key, (3,)) * scale
    hidden = batch["x"] @ params["layer"].w.astype(jnp.float32) + noise
    loss = {"log": jnp.log}[activation](hidden - hidden).sum()
    return {"loss": -loss if flip else loss, "key": jax.random.split(key)[0]}


ARGS = (
    {"layer": Layer(jnp.ones((4, 3), jnp.bfloat16), jnp.zeros(3)), "none": None},
    {"x": np.ones((2, 4), np.float32), "rest": [np.arange(3), 4]},
    jax.random.key(7),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "model.zip"
    diagnose.save_bundle(path, model, *ARGS, scale=0.5, activation="log")
    return path


def rewritten(source, target, change):
    """A copy of a bundle with its manifest changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "bundle.json":
                data = json.dumps(change(json.loads(data)))
            new.writestr(name, data)
    return target


def test_the_fault_shows_again_with_its_finding(bundle):
    result = diagnose.replay(bundle)
    assert (result.outcome, result.bitwise, result.reproduced) == ("again", True, True)
    expected = diagnose.first_nonfinite(model, *ARGS, scale=0.5)
    assert result.finding.to_json() == expected.to_json()
    assert result.finding.summary() == expected.summary()
    assert result.differences == ()
    bad = {output.name: output.num_inf for output in result.now if output.bad}
    assert bad == {"result['loss']": 1}


def test_its_text_and_its_json(bundle):
    result = diagnose.replay(bundle)
    text = result.summary()
    assert text.startswith("The fault shows again here, the same bits\n")
    assert "\n  result['loss']: float32[], 0 NaN, 1 Inf, the same here\n" in text
    assert "  Inf born in the forward pass, by log\n" in text
    line = f"{result.finding.line} {' ' * 4}{result.finding.source}"
    assert line[:60] in text
    assert max(map(len, text.replace(str(bundle), "").splitlines())) <= 80
    plain = json.loads(result.to_json())
    assert plain["reproduced"] is True
    assert plain["finding"]["primitive"] == "log"
    assert repr(result).startswith("Replay(")


def test_the_function_itself_gives_lines_of_today(bundle):
    result = diagnose.replay(bundle, fn=model)
    assert result.finding_here.to_json() == result.finding.to_json()
    assert "The code here gives the same finding." in result.summary()


def test_another_function_on_the_same_inputs(bundle):
    def other(params, batch, key, scale, activation):
        assert isinstance(params["layer"], Layer)
        assert params["none"] is None
        assert (batch["rest"][1], scale, activation) == (4, 0.5, "log")
        return jnp.sqrt(params["layer"].b - 1), jax.random.normal(key)

    result = diagnose.replay(bundle, fn=other)
    assert result.finding_here.primitive == "sqrt"
    assert "The finding here, from the code:" in result.summary()


DTYPES = [
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "complex64",
    "int8",
    "uint32",
    "bool",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_any_dtype_come_back_bit_for_bit(tmp_path, dtype):
    x = np.arange(6).reshape(2, 3).astype(np.dtype(dtype))
    path = tmp_path / "x.zip"
    diagnose.save_bundle(path, lambda tree: (tree, 1 / jnp.zeros(2)), {"a": [x, None]})
    (array,) = _bundle.read_bundle(path).arrays
    assert array.data.dtype == x.dtype
    assert array.data.tobytes() == x.tobytes()
    assert array.data.shape == x.shape
    result = diagnose.replay(path)
    assert (result.bitwise, result.outcome) == (True, "again")
    assert result.now[0].dtype == dtype


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_draw_the_same_numbers(tmp_path, impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 4)
    path = tmp_path / "keys.zip"

    def draw(keys, old):
        return jax.vmap(jax.random.normal)(keys), jax.random.normal(old) / 0

    old = jax.random.PRNGKey(5)
    diagnose.save_bundle(path, draw, keys, old)
    args, kwargs = _bundle.arguments(_bundle.read_bundle(path), home=__name__)
    assert kwargs == {}
    np.testing.assert_array_equal(draw(*args)[0], draw(keys, old)[0])
    assert diagnose.replay(path).bitwise


def test_numbers_that_are_no_arrays(tmp_path):
    path = tmp_path / "numbers.zip"
    diagnose.save_bundle(path, lambda x, n: x * jnp.ones(n), float("nan"), 3)
    result = diagnose.replay(path)
    assert result.outcome == "again"
    assert (result.finding.phase, result.finding.result.name) == ("input", "x")
    args, _ = _bundle.arguments(_bundle.read_bundle(path), home=__name__)
    assert np.isnan(args[0])
    assert args[1] == 3


def test_64_bit_numbers(tmp_path):
    path = tmp_path / "wide.zip"
    with jax.enable_x64(True):
        diagnose.save_bundle(path, jnp.exp, np.array([100.0, 1000.0]))
    result = diagnose.replay(path)
    assert (result.outcome, result.bitwise) == ("again", True)
    assert result.now[0].dtype == "float64"  # exp(100) fits into it
    assert result.now[0].num_inf == 1
    assert ("jax_enable_x64", "True", "default") in result.differences


def test_a_healthy_function_is_finite_then_and_now(tmp_path):
    path = tmp_path / "healthy.zip"
    diagnose.save_bundle(path, jnp.exp, np.ones(3, np.float32))
    result = diagnose.replay(path)
    assert (result.outcome, result.reproduced, result.finding) == (
        "finite",
        False,
        None,
    )
    assert result.summary().startswith("Nothing was non-finite, then and now")


def loops(x):
    def turn(carry, row):
        jax.debug.print("row {}", row)
        return jax.lax.cond(row[0] > 0, jnp.log, jnp.sqrt, carry - row), row

    return jax.jit(jax.checkpoint(lambda c: jax.lax.scan(turn, c, x)))(jnp.ones(2))


def test_loops_branches_and_gradients(tmp_path):
    path = tmp_path / "loops.zip"
    diagnose.save_bundle(
        path, jax.value_and_grad(lambda x: loops(x)[0].sum()), jnp.ones((3, 2))
    )
    result = diagnose.replay(path)
    assert (result.outcome, result.bitwise) == ("again", True)


def test_a_program_that_calls_python_has_inputs_and_finding_only(tmp_path):
    path = tmp_path / "callback.zip"

    def fn(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jnp.log(jax.pure_callback(lambda x: x, shape, x))

    diagnose.save_bundle(path, fn, jnp.zeros(2))
    result = diagnose.replay(path)
    assert (result.outcome, result.bitwise) == ("not run", None)
    assert "callback" in result.note
    assert result.finding.primitive == "log"
    assert result.summary().startswith("The program was not run here\n")
    assert diagnose.replay(path, fn=fn).finding_here.primitive == "log"


def test_other_results_and_another_machine_are_told(bundle, tmp_path):
    def change(manifest):
        loss = next(o for o in manifest["outputs"] if "loss" in o["name"])
        loss.update(num_inf=0, digest="0")
        manifest["versions"]["jax"] = "0.1"
        manifest["settings"]["XLA_FLAGS"] = "--xla_elsewhere"
        return manifest

    result = diagnose.replay(rewritten(bundle, tmp_path / "other.zip", change))
    assert (result.outcome, result.bitwise) == ("gone", False)
    names = [name for name, _, _ in result.differences]
    assert {"jax", "XLA_FLAGS"} <= set(names)
    assert f"jax: 0.1 then, {jax.__version__} here" in result.summary()
    assert "here 0 NaN, 1 Inf" in result.summary()


@pytest.mark.parametrize(
    ("then", "outcome"), [((1, 0), "in part"), ((0, 0), "gone"), ((1, 1), "again")]
)
def test_outcome_when_outputs_differ(tmp_path, then, outcome):
    path = tmp_path / "two.zip"
    diagnose.save_bundle(path, lambda x: (jnp.log(x), 1 / x), jnp.zeros(()))

    def change(manifest):
        for output, count in zip(manifest["outputs"], then, strict=True):
            output["num_inf"] = count
        return manifest

    result = diagnose.replay(rewritten(path, tmp_path / "changed.zip", change))
    assert result.outcome == outcome


def damaged_byte(path):
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        start = file.getinfo("arrays/0.bin").header_offset
    data[start + 45] ^= 0xFF
    path.write_bytes(bytes(data))


def shorter(path):
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path):
    with path.open("wb") as file:
        np.savez(file, x=np.ones(3))


def text(path):
    path.write_text("no zip")


def later_format(path):
    rewritten(path, path.with_suffix(".new"), lambda m: {**m, "format": 99})
    path.with_suffix(".new").replace(path)


def wrong_shape(path):
    def change(manifest):
        manifest["arrays"][0]["shape"] = [1_000_000_000_000]
        return manifest

    rewritten(path, path.with_suffix(".new"), change)
    path.with_suffix(".new").replace(path)


def object_dtype(path):
    def change(manifest):
        manifest["arrays"][0]["dtype"] = "object"
        return manifest

    rewritten(path, path.with_suffix(".new"), change)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    "damage",
    [damaged_byte, shorter, foreign, text, later_format, wrong_shape, object_dtype],
)
def test_a_damaged_or_foreign_file(bundle, tmp_path, damage):
    path = tmp_path / "damaged.zip"
    path.write_bytes(bundle.read_bytes())
    damage(path)
    with pytest.raises(ValueError, match=r"^replay: the file is no bundle.*got .*zip"):
        diagnose.replay(path)


def test_a_program_of_an_unknown_version_is_not_run(bundle, tmp_path):
    path = tmp_path / "program.zip"
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, b"x" * 100 if name == "program.bin" else data)
    result = diagnose.replay(path)
    assert result.outcome == "not run"
    assert result.note
    assert result.finding.primitive == "log"


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^replay: there is no such file"):
        diagnose.replay(tmp_path / "nothing.zip")


def test_arguments_that_cannot_be_rebuilt_are_refused_only_with_fn(tmp_path):
    path = tmp_path / "function.zip"

    def fn(x, f):
        return f(x)

    diagnose.save_bundle(path, fn, jnp.zeros(2), jnp.log)
    assert diagnose.replay(path).outcome == "again"
    with pytest.raises(ValueError, match=r"^replay: the arguments of fn cannot"):
        diagnose.replay(path, fn=fn)


def test_a_named_tuple_of_a_module_that_is_not_loaded_is_not_imported(bundle, tmp_path):
    def change(manifest):
        return json.loads(
            json.dumps(manifest).replace(json.dumps(__name__), '"antigravity"')
        )

    path = rewritten(bundle, tmp_path / "import.zip", change)
    with pytest.raises(ValueError, match=r"antigravity\.Layer"):
        diagnose.replay(path, fn=model)


def test_a_donated_argument_is_refused(tmp_path):
    x = jnp.ones(3)
    x.delete()
    with pytest.raises(ValueError, match="donated"):
        diagnose.save_bundle(tmp_path / "x.zip", jnp.log, x)
    assert list(tmp_path.iterdir()) == []


def test_ml_dtypes_agree_with_what_is_stored(tmp_path):
    path = tmp_path / "b.zip"
    x = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    diagnose.save_bundle(path, lambda x: x, x)
    with zipfile.ZipFile(path) as file:
        assert np.frombuffer(file.read("arrays/0.bin"), np.uint16).tolist() == [
            0x3FC0,
            0xC000,
        ]
