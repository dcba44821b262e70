"""Ensemble: the members of a request with one weight a step, normalised."""

from collections.abc import Callable

from mezzotint.errors import InvalidRequest
from mezzotint.plain import exchange
from mezzotint.planning.plan import Resolved
from mezzotint.request import EnsembleMember, GenerationRequest

__all__ = ["resolve_ensemble"]


def resolve_ensemble(
    request: GenerationRequest, num_steps: int, digest: Callable[[str, str], str]
) -> tuple[Resolved[EnsembleMember], ...]:
    """Normalise the weights of an ensemble; its members are all the denoisers there are."""
    if not request.ensemble:
        return ()
    weights = [
        _weights_of(member, position, num_steps) for position, member in enumerate(request.ensemble)
    ]
    totals = [sum(step) for step in zip(*weights, strict=True)]
    if not all(total > 0 for total in totals):
        step = next(k for k, total in enumerate(totals, start=1) if total <= 0)
        raise InvalidRequest(
            f"ensemble weights must not all be 0, but they are at step {step}", field="ensemble"
        )
    whole = [
        own for member, own in zip(request.ensemble, weights, strict=True) if not member.is_local
    ]
    if not whole or not all(any(step) for step in zip(*whole, strict=True)):
        raise InvalidRequest(
            "ensemble needs at every step a member of weight > 0 without mask and box: it "
            "answers where the others are not asked",
            field="ensemble",
        )
    return tuple(
        Resolved(
            part=exchange(
                member,
                weights=tuple(w / total for w, total in zip(own, totals, strict=True)),
                feather=member.feather if member.is_local else 0.0,
            ),
            digest=digest("model", member.model),
            pictures=(member.mask.digest,) if member.mask else (),
        )
        for member, own in zip(request.ensemble, weights, strict=True)
    )


def _weights_of(member: EnsembleMember, position: int, num_steps: int) -> tuple[float, ...]:
    """Return one weight per step."""
    if member.weights and len(member.weights) != num_steps:
        raise InvalidRequest(
            f"ensemble[{position}].weights must have one weight per step that is run, "
            f"got {len(member.weights)} for {num_steps} steps",
            field=f"ensemble[{position}].weights",
            value=len(member.weights),
            allowed=str(num_steps),
        )
    return member.weights or (member.weight,) * num_steps
