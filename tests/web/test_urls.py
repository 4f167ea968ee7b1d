"""Redacting URLs and naming files after them."""

import pytest
from yarl import URL

from unwait.web.errors import InvalidURL
from unwait.web.urls import FileNames, host, is_secret, parse, redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host/@user/x", "http://host/@user/x"),
        ("http://user:secret@host/x", "http://***@host/x"),
        ("http://user@host:80/x?q=a@b", "http://***@host:80/x?q=a@b"),
        ("HTTPS://u:s@cret@host", "HTTPS://***@host"),
        ("http://user:sec/ret@host/", "http://***@host/"),
        ("http://user:sec#ret@host/", "http://***@host/"),
        ("ftp://user:secret@host/", "ftp://***@host/"),
        ("user:secret@host", "***@host"),
        ("http://user:secret@:1/", "http://***@:1/"),
        ("", ""),
        ("u:secret@http://x", "***@http://x"),
        ("http://h/?to=http://u:secret@x/", "http://h/?to=http://***@x/"),
        ("http://h/?to=http%3A%2f%2Fu%3asecret%40x%2F&a=%40", "http://h/?to=http%3A%2f%2F***%40x%2F&a=%40"),
        ("http://a:b@h/http://u:secret@x/@y", "http://***@h/http://***@x/@y"),
        ("http://h?mail=a%40b", "http://h?mail=a%40b"),
        ("http://h/?key=abc&q=1", "http://h/?key=***&q=1"),
        (
            "http://h/?a=1&api%5Fkey=x;sig=3#access_token=z",
            "http://h/?a=1&api%5Fkey=***;sig=***#access_token=***",
        ),
        (
            "http://h/?X-Amz-Signature=f&X-Amz-Credential=c",
            "http://h/?X-Amz-Signature=***&X-Amz-Credential=***",
        ),
        ("http://h/?a=1&next=http%3A%2F%2Fh%3Ftoken%3Da&b=%20", "http://h/?a=1&next=***&b=%20"),
        ("http://u:p@h/?next=http://h?token=a@b", "http://***@h/?next=http://h?token=***"),
        (
            "http://h/?author=me&monkey=4&keyword=2&design=5",
            "http://h/?author=me&monkey=4&keyword=2&design=5",
        ),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    "name", ["Authorization", "cookie", "X-Api-Key", "X-Auth-Token", "Ocp-Apim-Subscription-Key", "password"]
)
def test_what_is_a_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["Accept", "Author", "Idempotency-Key", "X-Request-Id", "Content-Type", "Keyword"]
)
def test_what_is_none(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://Host/x", "host"),
        ("https://u:p@h:8080?x=@y", "h:8080"),
        ("http://[::1]:80/", "[::1]:80"),
        ("no URL", "no URL"),
    ],
)
def test_the_host_as_a_key(url: str, key: str) -> None:
    assert host(url) == key


@pytest.mark.parametrize(
    "url", ["http://a b/", "http://a\x7fb/", "http://a|b/", f"http://{'a' * 70}.de/", "http://:80/"]
)
def test_hosts_that_there_cannot_be(url: str) -> None:
    with pytest.raises(InvalidURL, match="bad host or port"):
        parse(url)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://host/", ("host", "")),
        ("http://host:8080/a/b.html", ("host_8080_a_b", ".html")),
        ("http://u:p@host/x.tar.gz", ("host_x.tar", ".gz")),
        ("http://host/a?b=c&d=%2Fe", ("host_a_b_c_d_e", "")),
        ("http://host/../../etc/passwd", ("host_etc_passwd", "")),
        ("http://host/%2e%2e%2f%2e%2e%2fetc", ("host_etc", "")),
        ("http://host/a%00b%0ac", ("host_a_b_c", "")),
        ("http://host/.hidden", ("host_.hidden", "")),
        ("http://host/" + "x" * 500, ("host_" + "x" * 145, "")),
        ("http://[::1]:80/x", ("1_x", "")),
    ],
)
def test_file_name(url: str, name: tuple[str, str]) -> None:
    assert FileNames()(URL(url)) == name


def test_file_names_are_unique() -> None:
    names = FileNames()
    urls = [
        "http://h/a/b",
        "http://h/a_b",
        "http://h/a_b.html",
        "http://h/a_b-2",
        "http://h/a?b",
        "http://h/a_b",
    ]
    stems = [names(URL(url))[0] for url in urls]
    assert stems[:2] == ["h_a_b", "h_a_b-2"]
    assert len(set(stems)) == len(urls)


@pytest.mark.parametrize(
    "url", ["localhost/?token=secret&next=http://x", "u:secret@http://x", "secret\n://x"]
)
def test_what_precedes_another_url_is_not_shown(url: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        parse(url)
    assert "secret" not in str(caught.value)


def test_a_host_that_cannot_be_decoded_is_refused() -> None:
    with pytest.raises(InvalidURL, match="bad host"):
        parse("http://xn--/")
