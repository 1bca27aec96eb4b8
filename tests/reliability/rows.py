"""The rows of the reliability table: what holds, which tests show it, and how their figures read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Figures = Sequence[dict[str, Any]]


def nothing(_: Figures) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Row:
    """``tests``: pytest's names; ``figure``: what their recorded figures say, in a few words."""

    name: str
    holds: str
    tests: tuple[str, ...]
    figure: Callable[[Figures], str] = nothing


def _of(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{file}.py::{name}" for name in names)


GOAL_TAU = 0.9


def _total(figures: Figures, key: str) -> int:
    return sum(int(one.get(key, 0)) for one in figures)


def _failures(figures: Figures) -> str:
    worst = {
        kind: max((one["seconds"] for one in figures if one["fault"] in faults), default=0.0)
        for kind, faults in (("killed or raising", ("kill", "raise")), ("hung or stopped", ("hang", "stop")))
    }
    ends = ", ".join(f"{kind} ends in ≤ {seconds:.1f} s" for kind, seconds in worst.items())
    return f"{len(figures)} runs; {ends} (limits 5 s and 2 s timeout + 5 s)"


def _ranking(figures: Figures) -> str:
    cells = ", ".join(f"{one['phase']} {one['kendall_tau_median']} (worst {one['worst']})" for one in figures)
    met = "met" if all(float(one["kendall_tau_median"]) >= GOAL_TAU for one in figures) else "missed"
    return f"Kendall τ, median over the committed campaign: {cells}; the goal of {GOAL_TAU} is {met}"


def _fuzzing(figures: Figures) -> str:
    return "; ".join(
        f"{one['cases']:,} files through {one['readers']} readers in {one['seconds']:.0f} s, {one['defects']} defects, "
        f"slowest {one['slowest_s']:.2f} s, memory grew {one['memory_growth_bytes'] / 1e6:.0f} MB"
        for one in figures
    )


ROWS = (
    Row(
        "determinism",
        "same inputs, same bytes: plan, trace and results, in separate processes, under any PYTHONHASHSEED",
        (
            "tests/reliability/test_determinism.py",
            *_of("test_engine_invariants", "test_traces_are_byte_identical_under_any_hash_seed"),
            *_of("test_compare", "test_the_same_seed_gives_the_same_numbers_in_one_process_or_two"),
            *_of("test_serving", "test_same_seed_same_run"),
            *_of("test_calibration_fit", "test_a_profile_of_the_same_rows_is_byte_identical"),
        ),
        lambda f: f"{_total(f, 'processes')} processes, {_total(f, 'outputs')} outputs identical",
    ),
    Row(
        "conservation",
        "FLOPs, KV bytes, tokens and requests are the same whatever the placement; sent = received = on the links",
        (
            *_of("reliability/test_whole_steps", "test_the_checks_see_what_is_lost",
                 "test_flops_keys_messages_and_bytes_are_conserved_whatever_the_placement"),
            *_of("test_engine_invariants", "test_bytes_on_the_links_are_the_messages_bytes"),
            *_of("test_invariants", "test_flops_tokens_and_cache_are_conserved_over_ranks",
                 "test_relabelling_nodes_and_their_gpus_changes_nothing"),
            "tests/test_routed_invariants.py",
            *_of("test_lowering", "test_attention_flops_are_conserved_over_ranks",
                 "test_any_pool_grid_computes_every_pair_once"),
            *_of("test_memory", "test_kv_cache_over_all_shards_is_the_models_kv"),
            *_of("test_serving", "test_no_request_is_lost_and_time_runs_forward",
                 "test_bursts_of_decode_steps_change_nothing"),
            *_of("test_schemes_run", "test_every_scheme_runs_to_its_end_and_sends_what_it_planned"),
        ),
        lambda f: f"{_total(f, 'plans')} random plans",
    ),
    Row(
        "monotonicity",
        "more work is never less time, bytes or memory; slower parts never a faster step; exceptions below",
        (
            "tests/reliability/test_monotonicity.py",
            *_of("test_invariants", "test_time_is_inverse_in_bandwidth",
                 "test_sequences_twice_as_long_never_take_less_time"),
        ),
        lambda f: "; ".join(
            f"{one['sharing_anomalies']} sharing anomalies in {one['random_steps']:,} contended steps, the worst "
            f"{one['worst_gain_percent']} %" for one in f
        ),
    ),
    Row(
        "lower bounds",
        "no step is below max(FLOP/peak, bytes/bandwidth, α·hops), no prediction below the roofline, no search bound "
        "above its simulation",
        (
            *_of("reliability/test_whole_steps", "test_no_step_is_shorter_than_its_flops_its_bytes_or_its_hops",
                 "test_hops_are_counted_along_values"),
            *_of("test_engine_invariants", "test_no_step_beats_its_compute_its_bytes_or_its_dependencies"),
            *_of("test_invariants",
                 "test_links_carry_what_is_sent_and_no_step_beats_its_flops_its_bytes_or_its_hops"),
            *_of("test_cost", "test_no_prediction_beats_the_roofline"),
            *_of("test_collectives", "test_no_collective_beats_its_bytes_over_its_links"),
            "tests/test_bound.py",
        ),
        lambda f: f"{_total(f, 'plans')} random plans, nearest at {f[0]['nearest_share_of_a_step']:.0%} of its step"
        if f else "",
    ),
    Row(
        "closed forms",
        "the engine takes exactly the time of ring, tree, chain, hierarchical, pipeline and M/D/1 formulas",
        (
            "tests/test_collectives.py",
            "tests/test_sharing.py",
            *_of("test_engine", "test_a_filled_pipeline_takes_stages_plus_micro_batches_minus_one",
                 "test_a_queue_of_equal_jobs_waits_as_m_d_1",
                 "test_one_shared_link_serves_n_messages_in_the_time_of_their_sum"),
            *_of("test_serving", "test_one_server_is_lindleys_recursion_to_the_picosecond", "test_mean_wait_is_m_d_1"),
        ),
    ),
    Row(
        "brute force",
        "the search's choice, and the head distribution's, is the best of all candidates simulated one by one",
        (
            *_of("test_search", "test_choice_equals_brute_force_on_random_instances"),
            *_of("test_breadth", "test_choice_equals_brute_force_over_every_family"),
            *_of("test_heads", "test_integer_program_equals_brute_force_on_random_gpus"),
        ),
    ),
    Row(
        "verifier",
        "code that the search does not share accepts what the planner makes and names the place of every mutation",
        ("tests/test_verify.py", *_of("test_breadth", "test_the_verifier_accepts_what_is_made_of_any_instance")),
    ),
    Row(
        "infeasibility",
        "what cannot fit says which rank lacks how many bytes, which SLO is below which bound, or what does not divide",
        (
            *_of("test_search", "test_an_slo_below_every_bound_is_refused_with_the_best_bound",
                 "test_a_model_that_fits_nowhere_names_rank_and_bytes"),
            *_of("test_cli", "test_a_model_that_cannot_fit_says_which_rank_lacks_how_much",
                 "test_heads_that_do_not_divide_are_refused_with_both_numbers"),
            *_of("test_lowering", "test_infeasible_placements_are_refused_in_one_line"),
            *_of("test_compare", "test_a_scheme_that_lacks_memory_names_the_rank",
                 "test_a_workload_that_nothing_can_serve_is_infeasible"),
        ),
    ),
    Row(
        "deadlock",
        "a program that never ends is an error naming the rank, the operation and what it waits for; never silence",
        (
            *_of("test_deadlock", "test_a_receive_without_a_send_is_a_deadlock_that_names_it",
                 "test_ranks_that_wait_for_each_other_are_a_deadlock",
                 "test_collectives_entered_in_different_orders_are_a_deadlock"),
            *_of("test_executor_transport", "test_a_message_nobody_sends_is_a_deadlock_with_names"),
        ),
    ),
    Row(
        "reference equality",
        "every placement run by real processes equals the one-device reference: fp32 ≤ 1e-5, bf16 ≤ 2e-2, same tokens",
        tuple(f"tests/test_{name}.py" for name in ("executor_world", "every_scheme", "two_level", "ring")),
    ),
    Row(
        "ranking",
        "plans predicted faster are measured faster",
        ("tests/reliability/test_ranking.py",),
        _ranking,
    ),
    Row(
        "rank failure",
        "kill -9, SIGSTOP, a hang or an exception ends the run soon, names rank and operation, keeps finished steps, "
        "leaves no process",
        ("tests/reliability/test_rank_failures.py",),
        _failures,
    ),
    Row(
        "killed calibration",
        "killed at random points and resumed, a calibration has the same points, none lost but the one in flight",
        ("tests/reliability/test_killed_calibration.py",),
        lambda f: "; ".join(f"killed {one['kills']} times, {one['points']} points the same" for one in f),
    ),
    Row(
        "atomic writes",
        "a writer killed at any moment leaves the old file or the new one, and no litter that lasts",
        (
            *_of("reliability/test_killed_writers",
                 "test_a_writer_killed_again_and_again_leaves_the_old_file_or_the_new_one",
                 "test_leftovers_of_killed_writers_are_swept_and_live_ones_are_not"),
            *_of("test_files", "test_a_failed_write_leaves_the_old_file_and_nothing_else",
                 "test_a_written_file_has_ordinary_permissions"),
        ),
        lambda f: f"{_total(f, 'kills')} kills, {_total(f, 'torn')} torn files",
    ),
    Row(
        "schema versions",
        "every file says its schema's version; another one is refused first, by name, with what to do",
        ("tests/reliability/test_schema_versions.py",),
        lambda f: f"{_total(f, 'files')} files, {_total(f, 'versions_refused')} other versions refused",
    ),
    Row(
        "hostile files",
        "100,000-deep nesting, 1e999, NaN, double keys, bombs, `../` names, 5000 digits, NUL, bad UTF-8: refused in "
        "one line, ≤ 1 s, ≤ 200 MB",
        ("tests/test_files.py",),
        lambda f: "; ".join(
            f"{one['files']} files, slowest {one['slowest_s']} s, peak {one['peak_megabytes']} MB" for one in f
        ),
    ),
    Row(
        "no pickle",
        "no module unpickles, evaluates or calls a shell, but for a list with reasons; frames between processes can "
        "name only our own classes",
        ("tests/reliability/test_no_pickle.py", "tests/test_wire.py"),
        lambda f: "; ".join(f"{one['modules']} modules, {one['allowed_with_reason']} exceptions" for one in f),
    ),
    Row(
        "web safety",
        "the explorer listens on 127.0.0.1, has XSRF protection, takes 5 MB at most, phones nobody; hostile addresses "
        "and uploads are notices",
        ("tests/test_app.py", "tests/test_app_browser.py"),
    ),
    Row(
        "disk full",
        "make, predict, calibrate import and run end with one line (exit 2; 1 where a rank's finished steps have no "
        "room), the old file intact, nothing left behind",
        (
            *_of("reliability/test_killed_writers", "test_a_full_disk_is_one_line_exit_2_and_the_old_file",
                 "test_a_full_file_system_keeps_the_old_file",
                 "test_a_run_whose_disk_is_full_ends_with_one_line_and_keeps_the_old_file"),
        ),
        lambda f: f"{', '.join(str(one['command']) for one in f)}",
    ),
    Row(
        "fuzzing",
        "mutated real files through every reader and what uses it first: only our errors, one line, ≤ 1 s each",
        ("tests/reliability/test_fuzzing.py",),
        _fuzzing,
    ),
    Row(
        "documented commands",
        "every command and program in README and docs runs, but for those listed with a reason",
        ("tests/reliability/test_documented_commands.py",),
        lambda f: f"{len(f)} commands run",
    ),
)  # fmt: skip
