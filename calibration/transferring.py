"""Transfer: another device's model plus a few local rows → a model of this device.

The donor's physical coefficients and residual are kept, read with this device's datasheet facts (FLOP/s, bytes/s,
SMs); a Gaussian process over the same features learns what the local rows still miss. Works within a generation,
whose libraries choose the same kernels; across generations nothing here makes it hold, and folds will say so.
"""

from __future__ import annotations

import numpy as np

from calibration.conformal import intervals
from calibration.folds import Predictor, held_out_seconds
from calibration.gaussian import fit_gaussian
from calibration.rows import Table
from simulator.costs.columns import range_columns
from simulator.costs.cost import PHYSICAL_MODELS
from simulator.costs.learned import apply_residual
from simulator.costs.physics import Array, Device
from simulator.errors import ProfileError
from simulator.profile import Intervals, KernelModel, Profile, Provenance, Range
from simulator.residual import GaussianResidual, Residual, TransferredResidual

MIN_ROWS = 12


def transferred_model(table: Table, donor: KernelModel, device: Device, provenance: Provenance) -> KernelModel:
    """``donor`` (of the same class and dtype) corrected by ``table``'s rows; its range is the donor's and the rows'."""
    if len(table.seconds) < MIN_ROWS:
        raise ProfileError(f"{table.kernel} {table.dtype}: {len(table.seconds)} rows; a transfer needs {MIN_ROWS}")
    shape = PHYSICAL_MODELS[table.kernel](table.x, donor.coefficients, device)
    borrowed = apply_residual(shape, donor.residual)
    missed = np.log(table.seconds / borrowed)
    fitted = fit_gaussian(shape.features, missed)
    corrected = held_out_seconds(table, lambda rest: _corrected(rest, donor, device))
    helps = np.abs(np.log(table.seconds / corrected)).mean() < np.abs(missed).mean()
    left_out = corrected if helps else borrowed
    return donor.model_copy(
        update={
            "compute_flop_per_s": device.flop_per_s,
            "bound_share": float(min(donor.bound_share, 1.0, np.min(table.seconds / shape.floor_s))),
            "residual": _stacked(donor.residual, fitted) if helps else donor.residual,
            "intervals": _widened(intervals(left_out, table.seconds, between=True), donor.intervals),
            "calibrated": _joined(donor.calibrated, table),
            "tag": "fitted",
            "provenance": provenance,
        }
    )


def _corrected(table: Table, donor: KernelModel, device: Device) -> Predictor:
    """The donor's model and what ``table``'s rows say it misses."""
    model = PHYSICAL_MODELS[table.kernel]
    shape = model(table.x, donor.coefficients, device)
    missed = np.log(table.seconds / apply_residual(shape, donor.residual))
    stacked = _stacked(donor.residual, fit_gaussian(shape.features, missed))
    return lambda other: apply_residual(model(other.x, donor.coefficients, device), stacked)


def _stacked(
    donor: Residual | GaussianResidual | TransferredResidual | None, local: GaussianResidual
) -> GaussianResidual | TransferredResidual:
    if donor is None:
        return local
    if isinstance(donor, TransferredResidual):
        raise ProfileError("the donor profile is itself a transfer; transfer from the profile it came from")
    return TransferredResidual(donor=donor, local=local)


def _widened(local: Intervals, donor: Intervals) -> Intervals:
    """The local rows' interval; where a column's value is new, the donor's for that."""
    return local.model_copy(update={"novel": donor.novel})


def _joined(calibrated: dict[str, Range], table: Table) -> dict[str, Range]:
    columns: dict[str, Array] = range_columns(table.kernel, table.x)
    return {
        name: bounds.model_copy(
            update={
                "low": min(bounds.low, float(columns[name].min())),
                "high": max(bounds.high, float(columns[name].max())),
            }
        )
        for name, bounds in calibrated.items()
    }


def donor_model(donor: Profile, table: Table) -> KernelModel | None:
    """The donor's model of a table's class and dtype, if it has one."""
    found = [model for model in donor.kernels if (model.kernel, model.dtype) == (table.kernel, table.dtype)]
    return found[0] if found else None
