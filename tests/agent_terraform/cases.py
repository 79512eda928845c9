"""What may go wrong around a cancel, and the tests that try it: the whole list, in one place.

Where a name is of tests/e2e it takes a cluster: there the agent is the first process of its container, and
the state is terraform's kubernetes backend. tests/repository checks that each of these tests is there.
"""

from __future__ import annotations

FAULTS = "tests/agent_terraform/test_provider_faults.py"
CANCEL = "tests/agent_terraform/test_cancel.py"
ENDS = "tests/agent_terraform/test_ends.py"
BACKENDS = "tests/agent_terraform/test_backends.py"
TIMEOUTS = "tests/agent_terraform/test_timeouts.py"
GIT = "tests/agent_terraform/test_git.py"
LOCKS = "tests/agent/test_backend.py"
LOST = "tests/e2e/test_agent_lost.py"
MOMENTS = "tests/e2e/test_moments.py"
STATES = "tests/e2e/test_states.py"

CASES: dict[str, tuple[tuple[str, str], ...]] = {
    "1. a cancel 0 to 100 ms and 1 s after exec, slow provider, existing state": (
        (FAULTS, "test_soon_after_the_start_no_whole_apply_slips_through"),
        (CANCEL, "test_in_the_gate_no_whole_apply_slips_through"),
    ),
    "2. a cancel between plan and apply": (
        (CANCEL, "test_at_the_very_start_of_each_step"),
        (MOMENTS, "test_a_cancel_between_plan_and_apply_never_lets_the_apply_begin"),
    ),
    "3. a cancel in the last 50 ms": ((FAULTS, "test_around_the_end_the_label_is_never_wrong"),),
    "4. cancels twice, with SIGTERM, with a timeout": (
        (CANCEL, "test_twice_is_one_ladder"),
        (TIMEOUTS, "test_a_timeout_and_cancels_after_it_are_one_ladder_and_the_first_names_the_end"),
    ),
    "5. processes that trap, setsid, fork twice, drop their environment, fork again and again": (
        (ENDS, "test_nothing_that_user_code_left_is_alive_after_the_end"),
        (FAULTS, "test_nothing_that_a_provider_started_is_alive_after_the_end"),
    ),
    "6. a provider that is stopped": (
        (CANCEL, "test_a_provider_that_hangs_is_killed_and_the_state_is_saved"),
        (FAULTS, "test_a_provider_that_takes_longer_is_killed_and_what_it_was_doing_is_told"),
    ),
    "7. a read that nothing interrupts": (
        (CANCEL, "test_in_a_read_that_nothing_interrupts_the_second_sigint_ends_it"),
        (FAULTS, "test_a_provider_that_hangs_before_anything_is_changed_ends_cleanly"),
    ),
    "8. a backend that hangs or fails at GET, LOCK, POST, UNLOCK": (
        (
            BACKENDS,
            "test_a_backend_that_does_not_answer_holds_up_no_cancel_and_the_lock_that_is_left_is_not_called_free",
        ),
        (BACKENDS, "test_what_a_backend_refuses_fails_the_run_and_its_lock_is_called_what_it_is"),
        (BACKENDS, "test_a_database_that_does_not_answer_holds_up_no_cancel"),
        (ENDS, "test_a_state_that_cannot_be_saved_is_told_with_its_place"),
    ),
    "9. a lock that is granted after the death of who asked for it": (
        (BACKENDS, "test_a_lock_granted_after_the_death_of_who_asked_for_it_is_found_in_the_bucket"),
    ),
    "10. a lock of somebody else, and of another run of the same host": (
        (BACKENDS, "test_a_lock_of_another_run_is_neither_removed_nor_taken_for_this_ones"),
        (TIMEOUTS, "test_a_lock_that_another_terraform_keeps_is_named_with_its_holder_and_left_alone"),
        (LOCKS, "test_a_lock_of_somebody_else_is_not_ours_to_release"),
    ),
    "11. a lock that init has left in the kubernetes backend, before there is a state": (
        (LOCKS, "test_our_own_lock_is_held_and_the_command_releases_just_that_one"),
        (STATES, "test_a_lock_that_init_has_left_before_there_is_a_state_is_released"),
    ),
    "12. SIGKILL of terraform, of the provider, of the agent": (
        (ENDS, "test_terraform_killed_from_outside_is_a_failure"),
        (FAULTS, "test_a_provider_outlives_a_terraform_that_is_killed_and_does_not_outlive_the_run"),
        (FAULTS, "test_what_a_provider_that_died_may_have_made_is_told"),
        (LOST, "test_a_lost_agent_ends_its_run_soon_after_the_kubelets_word_and_never_before"),
    ),
    "13. an agent that stands still for 30 s, lines of 1 MB": (
        (ENDS, "test_an_agent_that_stands_still_for_half_a_minute_neither_stops_terraform_nor_loses_a_line"),
        (ENDS, "test_lines_of_a_megabyte_neither_block_nor_get_lost"),
    ),
    "14. a grandchild that holds an inherited file": (
        (ENDS, "test_a_grandchild_that_holds_the_pipe_holds_up_no_cancel"),
        (FAULTS, "test_nothing_that_a_provider_started_is_alive_after_the_end"),
    ),
    "15. 1,000 orphans": ((ENDS, "test_a_thousand_orphans_leave_no_zombie_and_the_right_exit_code"),),
    # `terraform show` may hang too, and is not tried: the agent never runs it.
    "16. an init that hangs on git, or on the backend": (
        (CANCEL, "test_in_init_a_download_that_hangs_is_ended"),
        (TIMEOUTS, "test_an_init_that_hangs_is_ended_in_bounded_time_with_all_that_it_started"),
        (GIT, "test_a_cancel_while_the_fetch_hangs_ends_all_that_git_started"),
        (BACKENDS, "test_an_init_whose_backend_does_not_answer_is_ended"),
    ),
    "17. an error before the cancel": (
        (CANCEL, "test_an_error_before_the_cancel_is_what_the_run_failed_of"),
        (FAULTS, "test_a_provider_that_had_failed_before_the_cancel_is_what_the_run_failed_of"),
    ),
    "18. a working directory that can't be written": (
        (ENDS, "test_a_working_directory_that_cannot_be_written_starts_no_terraform"),
    ),
    "19. TF_CLI_ARGS_apply=-lock=false by the user": (
        (ENDS, "test_arguments_that_a_user_gives_to_terraform_have_no_effect"),
        (ENDS, "test_user_code_sees_the_containers_environment_and_nothing_of_the_agents"),
    ),
    "20. SIGTERM with a short grace": (
        (TIMEOUTS, "test_a_pod_that_leaves_no_time_for_its_grace_is_hurried_and_its_report_is_out_before_it_is_killed"),
        (CANCEL, "test_the_pods_end_is_the_same_ladder_also_without_an_operator"),
    ),
    "21. every process of the container killed at once": (
        (LOST, "test_a_lost_agent_ends_its_run_soon_after_the_kubelets_word_and_never_before"),
    ),
    "22. SIGKILL in the middle of the write of a state of many Secrets": (
        (STATES, "test_a_state_that_a_kill_has_torn_is_told_and_the_way_back_works"),
    ),
    "23. a cancel before the first of 20 resources": (
        (FAULTS, "test_before_the_first_operation_no_object_is_made"),
        (MOMENTS, "test_a_cancel_in_the_first_moments_of_an_apply_leaves_none_of_its_twenty_resources"),
    ),
}
