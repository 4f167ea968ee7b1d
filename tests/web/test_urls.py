"""Redacting URLs and naming files after them."""

import pytest
from yarl import URL

from unwait.web.urls import FileNames, redact


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
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown


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
