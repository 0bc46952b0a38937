"""The suites find the driver that breaks its promise, and the test that fails says which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BROKEN = Path(__file__).with_name("broken_drivers.py")

FINDS = {
    "TestForgetfulSink": {
        "test_delivered_sample_is_with_the_peer_when_send_returns",
        "test_every_media_type_that_the_sink_names_is_taken",
    },
    "TestRepeatingSink": {
        "test_sample_that_comes_again_is_delivered_and_stored_once",
        "test_sample_that_comes_again_with_other_annotations_is_stored_once",
        "test_sample_that_comes_again_after_a_restart_is_delivered_and_stored_once",
    },
    "TestShortSink": {"test_each_sample_gets_a_receipt"},
    "TestBusySink": {"test_constructor_does_no_io"},
    "TestLooseSink": {"test_options_are_frozen_and_know_their_keys"},
    "TestTrustingSink": {
        "test_fault_is_understood_and_survived",
        "test_failure_behind_a_200_is_not_taken_for_a_delivery",
        "test_peer_that_is_down_costs_nothing_but_time",
    },
    "TestHastySource": {"test_refused_frame_is_tried_again_before_the_next"},
    "TestFragileSource": {"test_bad_frame_does_not_stop_the_others"},
    "TestForgetfulSource": {"test_frames_that_come_again_after_a_restart_are_the_same_samples"},
    "TestDicingSelector": {"test_same_frames_give_the_same_reasons"},
    "TestHoardingSelector": {"test_memory_has_a_bound"},
    "TestClockSelector": {"test_only_the_time_of_the_frames_counts"},
    "TestLeaningBackend": {"test_result_does_not_depend_on_the_rest_of_the_batch"},
    "TestScaledBackend": {"test_places_are_in_pixels_of_the_original"},
    "TestScribblingBackend": {"test_pixels_are_not_written_to"},
    "TestEagerBackend": {"test_constructor_does_not_look_for_the_model"},
    "TestCarelessTrainer": {
        "test_model_is_a_package_of_the_snapshot_s_labels_inside_the_work_folder",
        "test_same_snapshot_gives_the_same_model_and_stays_as_it_is",
        "test_training_that_was_killed_goes_on",
        "test_finished_training_is_not_done_again_in_vain",
        "test_training_that_is_to_stop_keeps_its_best_model",
        "test_damaged_snapshot_is_a_training_error",
    },
    "TestMistakingPlatform": {
        "test_a_model_that_is_not_there_is_a_model_error",
        "test_a_format_that_is_not_there_is_a_model_error",
        "test_what_is_published_is_listed_once_however_often_it_comes",
        "test_what_is_assigned_is_the_target",
        "test_what_is_not_there_cannot_be_assigned",
    },
}


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The tests that fail, by class, in a run of pytest over the broken drivers."""
    folder = tmp_path_factory.mktemp("suites")
    (folder / "test_broken.py").write_text(BROKEN.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=report.xml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    failed: dict[str, set[str]] = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        if case.find("failure") is not None:
            name = case.attrib["classname"].rpartition(".")[2]
            failed.setdefault(name, set()).add(case.attrib["name"].partition("[")[0])
    return failed


@pytest.mark.parametrize("name", FINDS)
def test_suite_finds(name: str, failures: dict[str, set[str]]) -> None:
    assert FINDS[name] <= failures.get(name, set())


def test_every_failure_is_meant(failures: dict[str, set[str]]) -> None:
    assert set(failures) == set(FINDS)
