"""Settings: what fits, what stops the start, and in which words."""

import base64

import msgspec
import pytest

from lurus_common.settings import OTHER_NAMES, Settings, SettingsError, read_settings, to_environment


class TestReading:
    def test_nothing_set_means_the_defaults(self) -> None:
        assert read_settings({}) == Settings()
        assert read_settings({"PATH": "/bin", "lurus_edge_port": "1"}) == Settings()

    def test_each_type_is_read(self) -> None:
        settings = read_settings(
            {
                "LURUS_EDGE_PORT": "0",
                "LURUS_HEARTBEAT_SECONDS": "0.5",
                "LURUS_MAX_BODY_BYTES": "1048576",
                "LURUS_PROFILE": "prod",
                "LURUS_WORKER_ID": "gateway-7_b",
                "LURUS_DATABASE_URL": "postgresql://a:b@c/d",
            }
        )
        assert (settings.edge_port, settings.heartbeat_seconds, settings.max_body_bytes) == (0, 0.5, 1048576)
        assert (settings.profile, settings.worker_id) == ("prod", "gateway-7_b")

    def test_names_of_others_are_ignored(self) -> None:
        assert read_settings(dict.fromkeys(OTHER_NAMES, "anything")) == Settings()

    def test_an_environment_is_read_back(self) -> None:
        settings = Settings(
            data_dir="/var/lib/lurus",
            admin_token="t" * 20,
            ops_port=5,
            stream_total_seconds=0.25,
            allowed_http_hosts="a,b",
        )
        assert read_settings(to_environment(settings)) == settings
        assert set(to_environment(settings)) == {
            "LURUS_" + field.name.upper() for field in msgspec.structs.fields(Settings)
        }


class TestRefusing:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("EDGE_PORT", "65536"),
            ("EDGE_PORT", "-1"),
            ("EDGE_PORT", "http"),
            ("EDGE_PORT", ""),
            ("EDGE_PORT", "1.5"),
            ("HEARTBEAT_SECONDS", "0"),
            ("HEARTBEAT_SECONDS", "-3"),
            ("HEARTBEAT_SECONDS", "nan"),
            ("HEARTBEAT_SECONDS", "inf"),
            ("HEARTBEAT_SECONDS", "86401"),
            ("HEARTBEAT_SECONDS", "fifteen"),
            ("MAX_LIVE_REQUESTS", "0"),
            ("LEASE_NANO_USD", "1e9x"),
            ("PROFILE", "production"),
            ("LOG_LEVEL", "verbose"),
            ("WORKER_ID", ""),
            ("WORKER_ID", "a/b"),
            ("WORKER_ID", "a" * 65),
            ("WORKER_ID", "ü"),
        ],
    )
    def test_what_does_not_fit_is_named_with_its_value_and_default(self, name: str, value: str) -> None:
        with pytest.raises(SettingsError) as caught:
            read_settings({f"LURUS_{name}": value})
        text = str(caught.value)
        assert text.startswith(f"LURUS_{name}: {value!r} does not fit")
        assert f"the default is {getattr(Settings(), name.lower())!r}" in text

    def test_an_unknown_name_gets_a_guess(self) -> None:
        with pytest.raises(
            SettingsError, match="LURUS_EDGEPORT is not a setting; did you mean LURUS_EDGE_PORT"
        ):
            read_settings({"LURUS_EDGEPORT": "1"})
        with pytest.raises(SettingsError, match="is not a setting; see"):
            read_settings({"LURUS_XYZZY_PLUGH_QUUX": "1"})

    def test_all_problems_are_told_at_once(self) -> None:
        with pytest.raises(SettingsError) as caught:
            read_settings({"LURUS_NO_SUCH": "1", "LURUS_EDGE_PORT": "x", "LURUS_LOG_PORT": "y"})
        assert len(str(caught.value).splitlines()) == 3

    @pytest.mark.parametrize(
        "name", ["database_url", "nats_url", "admin_token", "credential_key", "data_dir"]
    )
    def test_what_is_required_is_named_with_advice(self, name: str) -> None:
        with pytest.raises(SettingsError) as caught:
            Settings().require(name)
        assert str(caught.value).startswith(f"LURUS_{name.upper()} is not set. ")
        assert len(str(caught.value)) > len(name) + 30

    @pytest.mark.parametrize("value", ["changeme", "hunter2", "PASSWORD", "please-change-me"])
    def test_weak_secrets_stop_production_only(self, value: str) -> None:
        Settings(admin_token=value).require("admin_token")
        with pytest.raises(SettingsError) as caught:
            Settings(admin_token=value, profile="prod").require("admin_token")
        assert value not in str(caught.value)
        assert "openssl" in str(caught.value)

    def test_strong_ones_pass(self) -> None:
        Settings(admin_token="x" * 16, key_pepper="y" * 64, profile="prod").require(
            "admin_token", "key_pepper"
        )


class TestCredentialKey:
    def test_thirty_two_bytes_in_base64(self) -> None:
        key = bytes(range(32))
        assert Settings(credential_key=base64.b64encode(key).decode()).credential_key_bytes() == key

    @pytest.mark.parametrize("value", ["", "x?y", "not base64!", "c2hvcnQ=", "ü" * 43])
    def test_anything_else_is_refused_without_showing_it(self, value: str) -> None:
        with pytest.raises(SettingsError) as caught:
            Settings(credential_key=value).credential_key_bytes()
        assert "openssl rand -base64 32" in str(caught.value)
        assert not value or value not in str(caught.value)


def test_hosts_are_split() -> None:
    assert Settings(allowed_http_hosts=" a, b.example ,,").http_hosts() == {"a", "b.example"}
    assert Settings(allowed_http_hosts="").http_hosts() == frozenset()
