"""A whole model quantized: roles, options that are off and on, and what is refused."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given

from tests.oracles import plain_gptq
from tests.toy import toy_recipe
from tests.trainer.matrices import SITES, UP, E, K, Q, loss, model, parts
from trainer.clipping import row_clips, row_scales
from trainer.errors import ArtifactError
from trainer.gptq import Problem, solve
from trainer.model import GPT
from trainer.protection import protect
from trainer.quantized import dequantize_model, q_max
from trainer.quantizer import Coding, coding, quantize_model
from trainer.settings import Gptq

EVERYTHING = Gptq(
    attention_bits=5,
    attention_k=9.0,
    mlp_bits=4,
    mlp_k=7.0,
    embed_bits=7,
    hessian_clip=0.175,
    damping_by="diagonal",
    attention_damping=0.02,
    mlp_damping=0.005,
    protect_groups=2,
    protect_width=5,
    lqer_matrices=2,
    lqer_rank=2,
    lqer_group=7,
)


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_with_every_option_off_a_model_is_plain_gptq() -> None:
    """Each matrix gets its bits, clip and site's Hessian, the embedding its own; everything else is fp16."""
    state, hessians = model(scale=2)
    settings = Gptq(matrix_bits=5, matrix_k=7.0, embed_bits=7, embed_k=9.0, damping=0.02, block=4)
    quantized = quantize_model(state, hessians, SITES, settings)
    assert set(quantized.matrices) == set(SITES)
    assert set(quantized.vectors) == {"gain", "scale"}
    for name, matrix in quantized.matrices.items():
        bits, k = (7, 9.0) if name == E else (5, 7.0)
        scales = row_scales(state[name], bits=bits, k=k)
        codes = plain_gptq(state[name], hessians[SITES[name]], scales, bits=bits, damping=0.02)
        assert (matrix.bits, matrix.protected, matrix.correction) == (bits, None, None)
        assert torch.equal(matrix.scales, scales)
        assert float((matrix.codes == codes).float().mean()) >= 0.99
    assert all(torch.equal(vector, state[name].half()) for name, vector in quantized.vectors.items())


def test_every_matrix_of_the_model_has_the_role_that_its_place_gives_it() -> None:
    """q, k, v and o are attention, up and down MLP, the tied matrix the embedding: a whole model has these."""
    settings = Gptq(
        attention_bits=5, attention_k=1.0, attention_damping=0.1, mlp_bits=4, mlp_k=2.0, mlp_damping=0.2, damping=0.3
    )
    expected = dict.fromkeys("qkvo", Coding(5, 1.0, 0.1)) | dict.fromkeys(("up", "down"), Coding(4, 2.0, 0.2))
    sites = GPT(toy_recipe(), seed=0).sites
    assert len(sites) == 6 * 3 + 1
    for name in sites:
        family = name.removesuffix(".weight").rpartition(".")[2]
        assert coding(name, settings) == (Coding(8, 20.0, 0.3) if name == "embedding" else expected[family]), name


def test_a_role_that_says_nothing_has_what_all_matrices_have() -> None:
    """Zeros are the matrices' bits, clip and damping."""
    settings = Gptq(matrix_bits=3, matrix_k=4.0, damping=0.5)
    assert {coding(name, settings) for name in (Q, K, UP, "other")} == {Coding(3, 4.0, 0.5)}


def test_roles_and_factor_reach_the_solver() -> None:
    """Bits, clip times the factor, Hessian-aware rows and damping of each matrix are those that its problem gets."""
    state, hessians = model()
    settings = dataclasses.replace(EVERYTHING, protect_groups=0, lqer_matrices=0)
    quantized = quantize_model(state, hessians, SITES, settings, factor=1.25)
    problems = []
    for name in sorted(SITES):
        bits, k, damping = coding(name, settings)
        clips = row_clips(state[name], hessians[SITES[name]], k=1.25 * k, share=0.175)
        problems.append(
            Problem(
                weight=state[name],
                hessian=hessians[SITES[name]],
                scales=row_scales(state[name], bits=bits, k=clips),
                bits=bits,
                damping=damping,
            )
        )
    assert {(p.bits, p.damping) for p in problems} == {(7, 0.01), (5, 0.02), (4, 0.005)}
    expected = solve(problems, block=settings.block, damping_by="diagonal")
    assert all(
        torch.equal(quantized.matrices[n].scales, p.scales) for n, p in zip(sorted(SITES), problems, strict=True)
    )
    assert all(
        torch.equal(quantized.matrices[n].codes, codes) for n, codes in zip(sorted(SITES), expected, strict=True)
    )


def test_protected_columns_have_the_clips_of_their_rows() -> None:
    """Hessian-aware clips, times the factor, are those of the finer codes too: k alone gives other scales."""
    state, hessians = model(scale=2)
    settings = Gptq(matrix_bits=4, matrix_k=8.0, hessian_clip=0.5, protect_groups=1, protect_width=16)
    quantized = quantize_model(state, hessians, SITES, settings, factor=1.5)
    ((name, own),) = [(n, m.protected) for n, m in quantized.matrices.items() if m.protected is not None]
    columns = range(own.start, own.start + own.width)
    clips = row_clips(state[name], hessians[SITES[name]], k=12.0, share=0.5)
    assert torch.equal(own.scales, protect(state[name], columns, bits=8, k=clips).scales)
    assert not torch.equal(own.scales, protect(state[name], columns, bits=8, k=12.0).scales), "the control"


@given(st.integers(0, 2**31 - 1), st.sampled_from([Gptq(), EVERYTHING]), st.floats(0.1, 50))
@example(0, EVERYTHING, 1.0)
def test_a_model_decodes_to_its_shapes(seed: int, settings: Gptq, factor: float) -> None:
    """Whatever the options and the clip: names and shapes in fp32, finite, codes within their bits."""
    state, hessians = model(seed=seed)
    quantized = quantize_model(state, hessians, SITES, settings, factor=factor)
    decoded = dequantize_model(quantized)
    assert {name: tensor.shape for name, tensor in decoded.items()} == {n: t.shape for n, t in state.items()}
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in decoded.values())
    for matrix in quantized.matrices.values():
        limits = torch.full(matrix.codes.shape[1:], q_max(matrix.bits))
        if (own := matrix.protected) is not None:
            limits[own.start : own.start + own.width] = q_max(own.bits)
        assert bool((matrix.codes.abs().amax(dim=0) <= limits).all())


def test_a_model_decodes_to_the_state_it_was_made_from() -> None:
    """dequantize_model gives every number back, off by the quantization alone."""
    state, hessians = model()
    decoded = dequantize_model(quantize_model(state, hessians, SITES, Gptq(matrix_bits=8, matrix_k=5.0)))
    for name, tensor in decoded.items():
        assert float((tensor - state[name]).abs().max()) < 0.2 * float(state[name].abs().max())


def test_degenerate_rows_are_quantized() -> None:
    """Rows of zeros, of one huge value and of fp32's largest number go through every option and stay finite."""
    state, hessians = model()
    for name in (Q, UP, E):
        state[name][0] = 0
        state[name][1, 3] = 1e6
        state[name][2] = 3e38
    decoded = dequantize_model(quantize_model(state, hessians, SITES, EVERYTHING))
    assert all(bool(tensor.isfinite().all()) for tensor in decoded.values())
    plain = dequantize_model(quantize_model(state, hessians, SITES, Gptq()))
    assert not any(plain[name][0].any() for name in (Q, UP, E))


@pytest.mark.parametrize("settings", [Gptq(), EVERYTHING], ids=["plain", "everything"])
def test_nothing_depends_on_the_order_of_the_names_or_on_the_call(settings: Gptq) -> None:
    """A state dict in another order, and another call, give the same model; arguments stay as they are."""
    state, hessians = model()
    kept = [tensor.clone() for tensor in (*state.values(), *hessians.values())]
    first = quantize_model(state, hessians, SITES, settings)
    turned = [dict(reversed(d.items())) for d in (state, hessians, SITES)]
    again = quantize_model(*turned, settings)  # type: ignore[arg-type]
    assert list(first.matrices) == list(again.matrices)
    assert equal(parts(first), parts(again))
    assert equal(kept, [*state.values(), *hessians.values()])


def test_every_option_changes_the_model() -> None:
    """Each key of the section does something to the model by itself, but those that another stage or key reads."""
    state, hessians = model()
    elsewhere = {"calibration", "target_bytes", "block"}
    idle = {"protect_width", "protect_bits", "lqer_rank", "lqer_group"}
    plain = parts(quantize_model(state, hessians, SITES, Gptq(damping=0.03)))
    on = dataclasses.replace(Gptq(), protect_groups=1, protect_width=5, lqer_matrices=1, lqer_rank=2, lqer_group=8)
    both = parts(quantize_model(state, hessians, SITES, on))
    for field in dataclasses.fields(Gptq):
        if field.name in elsewhere:
            continue
        value = "diagonal" if field.name == "damping_by" else 3 if field.type == "int" else 0.5
        base, settings = (both, on) if field.name in idle else (plain, Gptq(damping=0.03))
        changed = quantize_model(state, hessians, SITES, dataclasses.replace(settings, **{field.name: value}))
        assert not equal(parts(changed), base), field.name


def test_options_lower_what_they_are_for() -> None:
    """On 10 draws each option lowers the H-weighted error of the model at the same clips, in all of them."""
    for seed in range(10):
        state, hessians = model(seed=100 * seed, scale=2)

        def total(settings: Gptq, state: dict = state, hessians: dict = hessians) -> float:
            found = quantize_model(state, hessians, SITES, settings).matrices
            return sum(loss(state[name], found[name], hessians[SITES[name]]) for name in SITES)

        plain = total(Gptq(matrix_bits=4, embed_bits=4))
        for more in ({"protect_groups": 4, "protect_width": 8}, {"lqer_matrices": 4}, {"mlp_bits": 5}):
            assert total(Gptq(matrix_bits=4, embed_bits=4, **more)) < plain, more


def test_what_is_missing_is_named() -> None:
    """No matrices, a matrix or Hessian that is absent, and a vector too large for fp16 are errors."""
    state, hessians = model()
    with pytest.raises(ArtifactError, match="the model names no matrices"):
        quantize_model(state, hessians, {}, Gptq())
    with pytest.raises(ArtifactError, match="no weights or Hessian of down, missing"):
        quantize_model(state, hessians, SITES | {"down": "missing"}, Gptq())
    with pytest.raises(ArtifactError, match="fp16 values of gain: 1 of 4"):
        quantize_model(state | {"gain": torch.tensor([1.0, 2.0, 1e5, 3.0])}, hessians, SITES, Gptq())


@pytest.mark.parametrize("settings", [Gptq(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_numbers_are_refused_by_name(settings: Gptq, bad: float) -> None:
    """NaN or infinity in a weight or a Hessian is an error that names the matrix, whatever the options."""
    state, hessians = model()
    spoiled = state | {UP: state[UP].clone()}
    spoiled[UP][1, 2] = bad
    with pytest.raises(ArtifactError, match=rf"weights of {UP}: 1 of 384 are NaN"):
        quantize_model(spoiled, hessians, SITES, settings)
    hessians["head"][2, 2] = bad
    with pytest.raises(ArtifactError, match="Hessian of embedding: 1 of 144 are NaN"):
        quantize_model(state, hessians, SITES, settings)


@pytest.mark.parametrize("settings", [Gptq(), EVERYTHING], ids=["plain", "everything"])
def test_a_hessian_of_another_width_is_refused_by_name(settings: Gptq) -> None:
    """A Hessian that does not fit its matrix is one line with both shapes."""
    state, hessians = model()
    with pytest.raises(ArtifactError, match=r"embedding: Hessian of shape \[3, 3\].*expected.*\[12, 12\]"):
        quantize_model(state, hessians | {"head": torch.eye(3)}, SITES, settings)
