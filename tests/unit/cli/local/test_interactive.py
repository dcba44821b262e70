import pytest


@pytest.fixture
def talk(cli, service, monkeypatch):
    def say(*lines, arguments=("--seed", "7")):
        waiting = iter(lines)

        def read(_prompt):
            line = next(waiting, None)
            if line is None:
                raise EOFError
            return line

        monkeypatch.setattr("builtins.input", read)
        return cli("generate", "-i", "-q", *arguments)

    return say


def test_each_line_is_a_picture_with_the_same_seed(talk, service):
    done = talk("a red apple", "+on a table")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "outputs/a-red-apple-7.png",
        "outputs/a-red-apple-on-a-table-7.png",
    ]
    assert len(service.made) == 1  # one service draws all


def test_an_empty_line_is_the_next_seed(talk):
    assert talk("a pear", "", "").out.splitlines()[-1] == "outputs/a-pear-9.png"


def test_a_field_is_changed_and_drawn_again(talk):
    done = talk("a pear", ":steps 3", ":seed 11", ":size 64x32", ":negative blurry", ":show")
    assert len(done.out.splitlines()) == 5
    for line in ("num_inference_steps: 3", "seed: 11", "width: 64", "height: 32"):
        assert line in done.err
    assert "negative_prompt: blurry" in done.err


def test_undo_goes_back_and_plan_tells_the_cost(talk):
    done = talk("a pear", ":seed 11", ":undo", ":plan", ":undo", ":undo")
    assert "'a pear', seed 7" in done.err
    assert " s\n" in done.err
    assert ":undo: there is nothing before this" in done.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (":nonsense 3", ":nonsense: there is no such command; there are :seed, :steps"),
        (":steps many", ":steps: must be a whole number, got 'many'"),
        (":steps", ":steps: needs a value"),
        (":steps 0", "num_inference_steps must be 1 to 1000"),
        (":size 64", ":size: must look like WIDTHxHEIGHT, got '64'"),
        (":set sedd=3", "did you mean 'seed'"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_conversation_goes_on(talk, line, message):
    done = talk("a pear", line, "a plum")
    assert done.code == 0
    assert message in done.err
    assert done.err.count("mezzotint: ") == 1
    assert done.out.splitlines()[-1] == "outputs/a-plum-7.png"


def test_it_may_begin_with_a_picture_and_ends_with_quit(talk):
    done = talk(":help", ":quit", "never", arguments=("a fish", "--seed", "5"))
    assert done.out == "outputs/a-fish-5.png\n"
    assert ":undo  the request before" in done.err
