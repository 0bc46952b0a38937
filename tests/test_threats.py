"""Where each known way to fail is held: the threats to such systems, by number, and the tests that meet them.

The numbers are those of the project's list of threats (published CVEs, advisories and bugs of comparable systems).
`HELD` names the tests; `PARTLY` says what a threat's tests do not show yet; `NOT_HERE` says why a threat cannot
concern this version.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

EXTERNAL = "tests/drivers/test_onnx_external.py"
FILES = "tests/test_files.py"
GUARD = "tests/server/test_routes.py"
SOCKETS = "tests/plugins/learningloop/detector/test_limits.py"
HOSTILE = "tests/server/test_hostile_clients.py"
HTTP = "tests/test_http.py"
LOOP_MODELS = "tests/plugins/learningloop/test_models.py"
STORE = "tests/deploy/test_modelstore.py"
THIS = "tests/test_threats.py"

HELD = {
    "S1 tensors of a model outside its package": [
        f"{EXTERNAL}::test_a_tensor_anywhere_else_is_refused_before_anything_is_read",
        f"{EXTERNAL}::test_a_compiled_part_is_refused_since_it_names_files_of_its_own",
        f"{EXTERNAL}::test_the_check_agrees_with_the_onnx_package_on_real_graphs",
    ],
    "S2 unknown keys and gigantic lengths of such tensors": [
        f"{EXTERNAL}::test_a_tensor_anywhere_else_is_refused_before_anything_is_read",
    ],
    "S3 models fetched by the onnx package on its own": [f"{THIS}::test_no_code_here_uses_what_must_not_be_used"],
    "S4 malformed models": [
        f"{EXTERNAL}::test_a_graph_with_flipped_bytes_opens_or_is_a_model_error",
        f"{EXTERNAL}::test_a_graph_nested_without_end_is_refused",
    ],
    "S5 custom operators": [f"{THIS}::test_no_code_here_uses_what_must_not_be_used"],
    "S6 pickled models": [
        f"{THIS}::test_no_code_here_uses_what_must_not_be_used",
        f"{LOOP_MODELS}::test_pickles_are_for_trainers_alone",
    ],
    "S7 pickle between processes": [f"{THIS}::test_no_code_here_uses_what_must_not_be_used"],
    "S8 zips": [
        f"{FILES}::test_zip_member_outside_the_folder_is_refused",
        f"{FILES}::test_zip_with_a_link_is_refused",
        f"{FILES}::test_zip_with_a_name_twice_is_refused",
        f"{FILES}::test_zip_over_a_limit_is_refused_before_it_is_unpacked",
        f"{FILES}::test_inner_path_goes_no_deeper_than_can_be_removed_again",
        f"{STORE}::test_a_zip_that_leads_outside_changes_nothing",
    ],
    "S9 file names chosen by others": [
        f"{FILES}::test_inner_path_stays_inside_or_is_refused",
        f"{STORE}::test_a_wrong_manifest_is_refused",
        "tests/drivers/test_folder_sink.py::test_camera_name_never_becomes_a_path",
        f"{LOOP_MODELS}::test_name_that_the_loop_gives_its_zip_is_nobodys_path",
        "tests/plugins/learningloop/test_images.py::test_image_that_the_loop_does_not_have_is_told",
    ],
    "S10 an API open to anyone": [
        f"{GUARD}::test_a_token_is_asked_for_everywhere_but_health_and_ready",
        f"{HOSTILE}::test_no_spelling_of_a_path_goes_round_the_token",
        "tests/test_config.py::test_other_machines_need_a_token_or_permission",
        "tests/test_config.py::test_defaults_are_safe",
        "tests/node/test_node.py::test_the_control_socket_is_for_its_owner_alone_and_goes_with_the_node",
    ],
    "S12 pages from elsewhere": [
        f"{GUARD}::test_a_page_from_elsewhere_is_refused_for_every_verb",
        f"{GUARD}::test_a_node_for_any_name_still_refuses_pages_from_elsewhere",
        f"{HOSTILE}::test_a_head_that_lies_is_4xx",
    ],
    "S13 answers that any page may read": [f"{GUARD}::test_no_answer_allows_other_origins_to_read_it"],
    "S14 paths that lead elsewhere": [f"{HOSTILE}::test_no_spelling_of_a_path_goes_round_the_token"],
    "S15 script in what is shown": ["tests/cli/test_demo.py::test_what_comes_from_files_is_escaped_in_the_report"],
    "S16 requests that cost more than they carry": [
        f"{GUARD}::test_a_hostile_form_is_4xx",
        f"{GUARD}::test_a_body_over_the_limit_is_413_before_it_is_read",
        f"{GUARD}::test_a_body_that_does_not_say_its_size_is_413_all_the_same",
        f"{HOSTILE}::test_a_head_without_end_is_refused_soon",
        f"{HOSTILE}::test_a_client_that_stands_still_is_hung_up_on",
        f"{HOSTILE}::test_connections_beyond_the_number_are_closed_and_places_come_free",
    ],
    "S17 pictures that cost more than they carry": [
        "tests/test_imaging.py::test_the_limit_on_pixels_is_exact",
        "tests/test_imaging.py::test_a_progressive_jpeg_with_very_many_scans_is_refused",
        "tests/test_imaging.py::test_the_scans_of_a_large_jpeg_are_paid_for_by_its_pixels",
        "tests/test_imaging.py::test_a_picture_of_nothing_but_notes_is_refused_before_they_are_all_read",
    ],
    "S19 Socket.IO clients that take all there is": [
        f"{SOCKETS}::test_a_token_is_asked_for_before_a_session_begins",
        f"{SOCKETS}::test_a_message_beyond_the_largest_ends_the_connection",
        f"{SOCKETS}::test_events_beyond_the_number_wait_and_none_is_lost",
        f"{SOCKETS}::test_who_sends_more_than_all_together_may_hold_is_cut_off",
        f"{SOCKETS}::test_pictures_of_an_event_that_never_comes_whole_are_counted_too",
        f"{SOCKETS}::test_clients_beyond_the_number_are_refused_and_places_come_free",
        f"{SOCKETS}::test_a_client_that_does_not_take_its_answers_is_cut_off",
        f"{SOCKETS}::test_nonsense_harms_nobody_else",
        "tests/server/test_messages.py::test_unfinished_messages_of_all_together_have_a_bound",
        "tests/server/test_messages.py::test_a_message_that_stands_still_is_hung_up_on",
        "tests/server/test_bodies.py::test_bodies_of_all_together_have_a_bound_and_small_ones_pass",
        "tests/server/test_messages.py::test_a_message_in_very_many_pieces_is_cut_off",
        "tests/plugins/learningloop/detector/test_rest.py::test_no_other_page_may_call_and_no_answer_is_for_all",
    ],
    "S20 a peer that is another": [
        f"{HTTP}::test_certificate_that_does_not_fit_means_nothing_is_sent",
        f"{HTTP}::test_secret_over_plain_http_needs_loopback_or_consent",
        f"{HTTP}::test_redirects_stay_with_the_peer_and_take_no_secret_elsewhere",
    ],
    "S21 secrets in what is shown": [
        f"{HTTP}::test_secrets_never_show_in_errors_or_logs",
        "tests/test_config.py::test_errors_never_show_a_secret",
        "tests/test_config.py::test_literal_secrets_are_warned_about_once_and_shown_nowhere",
        "tests/cli/test_check.py::test_literal_secret_is_warned_about_and_never_shown",
        "tests/node/test_node.py::test_the_status_holds_no_secret",
    ],
    "S22 plugins that nobody named": [
        "tests/integration/test_third_party_packages.py::test_nothing_of_a_package_is_imported_that_nobody_names",
    ],
    "S26 text that commands a terminal": [
        "tests/cli/test_detect.py::test_control_characters_in_names_do_not_reach_the_terminal",
        "tests/cli/test_plugins.py::test_control_characters_are_shown_not_obeyed",
        "tests/cli/test_check.py::test_control_characters_of_the_file_reach_the_terminal_as_escapes",
        "tests/cli/test_log.py::test_what_is_logged_does_not_command_the_terminal",
    ],
}

PARTLY = {
    "S4": "A model is opened in the node's own process: an error is typed, a crash of the runtime ends the node.",
    "S9": "No download from a platform exists yet; its file names are for that issue's tests.",
    "S14": "No file is served yet; mounts see the path as it came.",
    "S17": "A PNG is decoded whole, so `max_pixels` alone bounds it: about 1 GB for 100 million pixels.",
}

NOT_HERE = {
    "S11": "no URL is taken as input",
    "S18": "no shared memory",
    "S23": "no model comes over the network",
    "S24": "no samples are taken from other devices",
    "S25": "no CSV or XML is read or written",
}

FORBIDDEN = r"""
    \bimport\ (pickle|marshal|shelve|dill|joblib|cloudpickle)\b | \bfrom\ (pickle|marshal|shelve|dill|joblib)\ import\b
    | \bonnx\.hub\b | \bfrom\ onnx\ import\ hub\b | register_custom_ops_library | allow_pickle\s*=\s*True
    | torch\.load | \brecv_pyobj\b | \bsend_pyobj\b | \byaml\.load\b | \beval\( | \bshell\s*=\s*True
"""


def numbers(keys: object) -> set[str]:
    return set(re.findall(r"\bS\d+\b", str(keys)))


@cache
def named_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("threat", HELD)
def test_each_threat_is_met_by_tests_that_exist(threat: str) -> None:
    for test in HELD[threat]:
        path, _, name = test.partition("::")
        assert name in named_in(path), f"{test} is gone; which test meets {threat} now?"


def test_every_threat_has_its_place_and_one_only() -> None:
    held, absent = numbers(list(HELD)), numbers(list(NOT_HERE))
    assert held | absent == {f"S{number}" for number in range(1, 27)}
    assert not held & absent
    assert numbers(list(PARTLY)) <= held


def test_no_code_here_uses_what_must_not_be_used() -> None:
    sources = [path for folder in ("loopcore", "plugins", "examples") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 50
    forbidden = re.compile(FORBIDDEN, re.VERBOSE)
    assert [str(path) for path in sources if forbidden.search(path.read_text())] == []
