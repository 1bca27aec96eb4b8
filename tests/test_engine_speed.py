"""Engine's speed, far below what benchmarks/results/engine_speed.json has: guards against a slip on a busy machine."""

from benchmarks import engine_speed


def test_the_engine_plays_well_over_a_hundred_thousand_operations_a_second() -> None:
    built = engine_speed.program(1)
    row = engine_speed.measure("one replica", built, engine_speed.cluster(len(built.ranks)))
    assert float(row["operations_per_s"]) > 100_000


def test_the_documents_step_takes_less_than_a_fifth_of_a_second() -> None:
    row = engine_speed.measure("FA Pool", *engine_speed.documents_step())
    assert float(row["simulate_s"]) < 0.2
