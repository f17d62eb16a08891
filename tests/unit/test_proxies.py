"""Which proxy leads to an endpoint."""

from __future__ import annotations

import pytest

from blobfuse_dysk import environment
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.proxies import Proxy, choose

HOST = "acc.blob.core.windows.net"
VARIABLES = {"https_proxy": "http://p:3128"}


@pytest.mark.parametrize(
    ("text", "shown", "login"),
    [
        ("http://proxy:3128", "http://proxy:3128", {}),
        ("proxy:3128", "http://proxy:3128", {}),
        ("http://proxy", "http://proxy:80", {}),
        ("http://[::1]:8080/", "http://[::1]:8080", {}),
        ("http://us%40er:se%3Acret@proxy:1", "http://proxy:1", {"Proxy-Authorization": "Basic dXNAZXI6c2U6Y3JldA=="}),
    ],
)
def test_the_url_of_a_proxy(text: str, shown: str, login: dict[str, str]) -> None:
    found = Proxy.parse(text, "proxy")
    assert found is not None
    assert (str(found), found.headers) == (shown, login)
    assert "se:cret" not in repr(found)
    assert Proxy.parse(found.url, "proxy") == found


@pytest.mark.parametrize(
    "text", ["https://p:1", "socks5://p", "http://", "http://p:x", "http://p/a", "http://p?a", "http://[::1"]
)
def test_what_is_no_proxy(text: str) -> None:
    with pytest.raises(UsageError, match="https_proxy") as caught:
        Proxy.parse(text, "https_proxy")
    assert "write http://" in (caught.value.remedy or "")


def test_a_setting_goes_before_the_variables_and_none_is_one() -> None:
    def chosen(**settings: str | None) -> str:
        return str(choose("https", HOST, 443, settings, VARIABLES))

    assert chosen() == chosen(option=None, file="") == "http://p:3128"
    assert chosen(option=None, file="http://f:1") == "http://f:1"
    assert chosen(option="http://o:1", file="http://f:1") == "http://o:1"
    assert chosen(option="none", file="http://f:1") == "None"


@pytest.mark.parametrize(
    ("scheme", "host", "variables", "chosen"),
    [
        ("https", HOST, {"https_proxy": "p:1", "all_proxy": "a:1", "http_proxy": "h:1"}, "http://p:1"),
        ("http", HOST, {"https_proxy": "p:1", "all_proxy": "a:1", "http_proxy": "h:1"}, "http://h:1"),
        ("https", HOST, {"all_proxy": "a:1", "http_proxy": "h:1"}, "http://a:1"),
        ("https", HOST, {"http_proxy": "h:1"}, "None"),
        ("https", "127.0.0.1", VARIABLES, "None"),
        ("https", "localhost", VARIABLES, "None"),
        ("https", "::1", VARIABLES, "None"),
    ],
)
def test_the_variable_of_the_scheme_counts_but_not_on_this_machine(
    scheme: str, host: str, variables: dict[str, str], chosen: str
) -> None:
    assert str(choose(scheme, host, 443, {}, variables)) == chosen


@pytest.mark.parametrize(
    ("no_proxy", "host", "exempt"),
    [
        ("*", HOST, True),
        (HOST, HOST, True),
        ("other, .windows.net", HOST, True),
        ("core.windows.net", HOST, True),
        ("*.windows.net", HOST, True),
        ("CORE.windows.net:443", HOST, True),
        ("core.windows.net:444", HOST, False),
        ("indows.net", HOST, False),
        ("10.0.0.0/8 192.168.1.1", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", HOST, False),
        ("[fd00::1]:443", "fd00::1", True),
        ("fd00::/8", "fd00::1", True),
        ("", HOST, False),
        (" , ", HOST, False),
    ],
)
def test_no_proxy_names_hosts_domains_networks_and_ports(no_proxy: str, host: str, exempt: bool) -> None:
    found = choose("https", host, 443, {}, {**VARIABLES, "no_proxy": no_proxy})
    assert (found is None) == exempt
    assert choose("https", host, 443, {"option": "http://o:1"}, {"no_proxy": no_proxy}) is not None


def test_the_variables_are_read_in_small_letters_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert environment.proxy_variables() == {}
    monkeypatch.setenv("HTTPS_PROXY", "http://large:1")
    assert environment.proxy_variables() == {"https_proxy": "http://large:1"}
    monkeypatch.setenv("https_proxy", "http://small:1")
    monkeypatch.setenv("NO_PROXY", "a")
    assert environment.proxy_variables() == {"https_proxy": "http://small:1", "no_proxy": "a"}
