import pytest

from mezzotint.engine.accounts import Accounts


def known(request_s=1.0, **credits):
    """Accounts of clients that are present, asked for so many seconds, and are owed these."""
    accounts = Accounts()
    for client in credits:
        accounts.welcome(client, f"first of {client}", request_s, 0.0)
    accounts.credits.update(credits)
    accounts.settle(credits, {}, 0.0)
    return accounts


def test_everybody_present_earns_alike_and_pays_for_its_own():
    accounts = known(x=0.0, y=-1.0)
    accounts.settle(["x", "y"], {"x": 2.0}, 2.0)
    assert accounts.credits == {"x": pytest.approx(-1.0), "y": pytest.approx(0.0)}


@pytest.mark.parametrize(
    ("rivals", "limit_s", "advance"), [(1, 9.0, 2.0), (1, 1.5, 1.5), (2, 9.0, 1.0)]
)
def test_a_new_client_gets_half_its_cost_in_advance_divided_by_its_rivals(rivals, limit_s, advance):
    accounts = known(**{f"r{k}": 0.0 for k in range(rivals)})
    accounts.welcome("new", "a", 4.0, limit_s)
    assert accounts.credits["new"] - accounts.credits["r0"] == pytest.approx(advance)
    before = dict(accounts.credits)
    accounts.welcome("new", "b", 4.0, limit_s)
    assert accounts.credits == before


def test_who_is_away_is_owed_three_of_its_requests_more_than_one_that_never_stops():
    accounts = known(hog=0.0)
    accounts.welcome("light", "a", 1.0, 0.0)
    accounts.welcome("light", "a", 1.0, 0.0)  # its second picture: two seconds in all
    for now in range(1, 50):
        accounts.settle(["hog"], {"hog": 1.0}, float(now))
    assert accounts.away == {"light": 2.0}
    assert accounts.credits == {"light": 0.0, "hog": pytest.approx(-6.0)}
    accounts.welcome("light", "b", 1.0, 0.0)
    assert accounts.away == {}


def test_who_asks_for_less_than_its_share_finds_a_full_bucket_again():
    accounts = known(hog=0.0, light=0.0)
    accounts.settle(["hog", "light"], {"light": 1.0}, 1.0)
    assert accounts.credits["light"] == pytest.approx(-0.5)
    accounts.settle(["hog"], {"hog": 1.0}, 2.0)
    assert accounts.credits["light"] == pytest.approx(0.0)


def test_who_leaves_in_debt_still_has_it_when_it_comes_back():
    accounts = known(x=0.0, y=0.0)
    accounts.settle(["x", "y"], {"x": 4.0}, 4.0)
    assert accounts.credits == {"x": pytest.approx(-2.0), "y": 0.0}
    accounts.settle(["y"], {"y": 0.5}, 4.5)
    accounts.welcome("x", "b", 1.0, 9.0)
    assert accounts.credits["x"] == pytest.approx(-1.75)


def test_who_is_away_for_more_than_a_minute_is_new_again():
    accounts = known(x=0.0, y=0.0)
    accounts.settle(["y"], {"y": 1.0}, 1.0)
    accounts.settle(["y"], {"y": 1.0}, 60.0)
    assert set(accounts.credits) == {"x", "y"}
    accounts.settle(["y"], {"y": 1.0}, 61.5)
    assert set(accounts.credits) == {"y"}


def test_pictures_of_nobody_are_forgotten_when_they_have_ended():
    accounts = Accounts()
    accounts.welcome("", "warm-up", 1.0, 9.0)
    accounts.settle([""], {"": 1.0}, 1.0)
    accounts.welcome("x", "a", 1.0, 9.0)
    accounts.settle(["", "x"], {"x": 1.0}, 2.0)
    assert set(accounts.credits) == {"", "x"}
    accounts.settle(["x"], {"x": 1.0}, 3.0)
    assert set(accounts.credits) == {"x"}
    assert accounts.away == {}


def test_nobody_is_held_back_for_longer_than_three_minutes_and_a_share():
    accounts = known(request_s=1000.0, hog=0.0, light=0.0)
    for now in range(1, 50):
        accounts.settle(["hog"], {"hog": 1000.0}, float(now))
    assert accounts.credits["hog"] - accounts.credits["light"] >= -180.0


def test_no_more_than_some_hundreds_are_remembered():
    accounts = Accounts()
    for k in range(400):
        accounts.welcome(f"c{k}", "r", 1.0, 1.0)
        accounts.settle([f"c{k}"], {f"c{k}": 0.1}, float(k) / 100)
    assert len(accounts.credits) <= 257
    assert "c399" in accounts.credits and "c0" not in accounts.credits
