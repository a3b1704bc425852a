from gateway.errors import ConfigError, ConfigProblem, DeviceAbsentError, DeviceError


def test_a_problem_has_file_line_section_cause_and_remedy() -> None:
    problem = ConfigProblem("lab.yaml", 7, "ports[0]", "invalid tcp 'x'", "1 to 65535")
    assert str(problem) == "lab.yaml:7: ports[0]: invalid tcp 'x': expected 1 to 65535"
    warning = ConfigProblem("lab.yaml", 7, "ports[0]", "tcp '23' is privileged", is_warning=True)
    assert str(warning) == "lab.yaml:7: warning: ports[0]: tcp '23' is privileged"


def test_a_problem_of_the_whole_file_has_neither_line_nor_key() -> None:
    assert str(ConfigProblem("lab.yaml", 0, "", "nothing", "a file")) == (
        "lab.yaml: nothing: expected a file"
    )


def test_a_config_error_shows_all_problems_a_line_each() -> None:
    problems = [ConfigProblem("f", number, "k", "a", "b") for number in (1, 2)]
    error = ConfigError(problems)
    assert error.problems == problems
    assert len(str(error).splitlines()) == 2


def test_an_absent_device_is_a_device_error() -> None:
    assert issubclass(DeviceAbsentError, DeviceError)
