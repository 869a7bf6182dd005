//! Whole configurations: what they mean, what is logged about them, and why some are refused.

#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::path::Path;

use ringkeeper_config::{
    Beside, ClientAddress, Config, Cpus, DigestAlgorithm, Effect, Host, Loaded, RawConfig, Weight,
    keys,
};

fn load(text: &str) -> Result<Loaded, Vec<String>> {
    load_beside(text, &Beside::default())
}

fn load_beside(text: &str, beside: &Beside) -> Result<Loaded, Vec<String>> {
    let raw = RawConfig::parse("zoo.cfg", text.as_bytes())
        .map_err(|problem| vec![problem.to_string()])?;
    Loaded::new(&raw, beside)
        .map_err(|problems| problems.0.iter().map(ToString::to_string).collect())
}

/// Adds the two settings that every file needs.
fn minimal(rest: &str) -> String {
    format!("{rest}\ndataDir=/data\nclientPort=2181\n")
}

fn config(rest: &str) -> Config {
    load(&minimal(rest)).unwrap().config
}

fn notices(rest: &str) -> Vec<String> {
    load(&minimal(rest))
        .unwrap()
        .notices
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The one problem of a configuration begins with `expect`.
#[track_caller]
fn refused(rest: &str, expect: &str) {
    let problems = load(&minimal(rest)).unwrap_err();
    assert!(
        problems.len() == 1 && problems[0].starts_with(expect),
        "{problems:#?}"
    );
}

#[test]
fn the_sample_of_apache_is_taken_without_a_word_but_for_the_ensemble_keys() {
    let sample = "\
# The number of milliseconds of each tick
tickTime=2000
initLimit=10
syncLimit=5
dataDir=/tmp/zookeeper
# the port at which the clients will connect
clientPort=2181
#maxClientCnxns=60
";
    let loaded = load(sample).unwrap();
    let config = &loaded.config;
    assert_eq!(config.files.data_dir, Path::new("/tmp/zookeeper"));
    assert_eq!(config.files.log_dir, Path::new("/tmp/zookeeper"));
    assert_eq!(
        config.clients.address,
        ClientAddress {
            host: Host::Any,
            port: 2181
        }
    );
    assert_eq!(
        (
            config.ensemble.session_timeout_ms_min,
            config.ensemble.session_timeout_ms_max
        ),
        (4000, 40_000)
    );
    let notices: Vec<_> = loaded.notices.iter().map(ToString::to_string).collect();
    assert_eq!(
        notices,
        [
            "zoo.cfg:3: initLimit has no effect here: only a member of an ensemble uses it, and this server is standalone",
            "zoo.cfg:4: syncLimit has no effect here: only a member of an ensemble uses it, and this server is standalone",
        ]
    );
}

#[test]
fn the_file_of_the_container_image_starts_a_standalone_server() {
    let image = "\
dataDir=/data
dataLogDir=/datalog
tickTime=2000
initLimit=5
syncLimit=2
autopurge.snapRetainCount=3
autopurge.purgeInterval=0
maxClientCnxns=60
standaloneEnabled=true
admin.enableServer=true
server.1=localhost:2888:3888;2181
";
    let beside = Beside {
        my_id: Some("1\n".to_owned()),
        dynamic: None,
    };
    let config = load_beside(image, &beside).unwrap().config;
    assert_eq!(
        config.clients.address,
        ClientAddress {
            host: Host::Any,
            port: 2181
        }
    );
    assert_eq!(config.files.log_dir, Path::new("/datalog"));
    assert_eq!(config.snapshots.purge_interval_ms, None);
    assert_eq!(config.files.my_id, Some(1));
    // Without myid nobody knows which line is this server's.
    let problems = load(image).unwrap_err();
    assert!(
        problems[0].starts_with("zoo.cfg: clientPort is not set"),
        "{problems:?}"
    );
}

#[test]
fn the_built_in_configuration_is_for_trying_out() {
    let loaded = Loaded::new(&RawConfig::embedded(), &Beside::default()).unwrap();
    assert_eq!(loaded.notices, []);
    assert_eq!(loaded.config.clients.address.to_string(), "127.0.0.1:2181");
    assert_eq!(loaded.config.files.data_dir, Path::new("./data"));
    assert!(loaded.config.words.is_allowed("mntr"));
    assert_eq!(loaded.config.ensemble.tick_ms, 3000);
}

#[test]
fn settings_reach_their_fields_in_their_units() {
    let config = config(
        "clientPortAddress=10.0.0.1\nminSessionTimeout=100\nmaxSessionTimeout=200\nmaxClientCnxns=0\nmaxCnxns=7\n\
         snapCount=1000\nsnapSizeLimitInKb=2\nringkeeper.snapshotLogSizeInKb=3\nringkeeper.snapshotKbPerSecond=0\n\
         autopurge.purgeInterval=90s\nfsync.warningthresholdms=20\njute.maxbuffer=0x400000\npreAllocSize=131072\n\
         largeRequestThreshold=500\nthrottled_op_wait_time=30\nskipACL=yes\nenforceQuota=TRUE\n\
         znode.container.maxNeverUsedIntervalMs=5\nringkeeper.cpus=0,2\nringkeeper.shards=4\nringkeeper.clientsBesideCore=0\n\
         DigestAuthenticationProvider.digestAlg=SHA-256\nDigestAuthenticationProvider.superDigest=super:abc=\n\
         connection_throttle_freeze_time=0\nconnection_throttle_drop_increase=0.5",
    );
    assert_eq!(config.clients.address.to_string(), "10.0.0.1:2181");
    assert_eq!(
        (
            config.ensemble.session_timeout_ms_min,
            config.ensemble.session_timeout_ms_max
        ),
        (100, 200)
    );
    assert_eq!(
        (config.clients.per_address_max, config.clients.total_max),
        (None, Some(7))
    );
    assert_eq!(config.snapshots.txns_min, 1000);
    assert_eq!(
        (
            config.snapshots.log_bytes_min,
            config.snapshots.log_bytes_max
        ),
        (3072, Some(2048))
    );
    assert_eq!(config.snapshots.bytes_per_second_max, None);
    assert_eq!(config.snapshots.purge_interval_ms, Some(90_000));
    assert_eq!(config.log.slow_write_ms, 20);
    assert_eq!(
        (
            config.ensemble.frame_bytes_max,
            config.ensemble.frame_bytes_extra
        ),
        (4 << 20, 4 << 20)
    );
    assert_eq!(config.log.segment_bytes, 128 << 20);
    assert_eq!(config.throttle.large_request_bytes_min, Some(500));
    assert_eq!(config.throttle.op_wait_ms_max, Some(30));
    assert!(config.ensemble.skip_acl && config.ensemble.enforce_quota);
    assert_eq!(config.containers.never_used_ms_max, Some(5));
    assert_eq!(config.placement.cpus, Cpus::List(vec![0, 2]));
    assert_eq!(config.placement.shards, Some(4));
    assert_eq!(config.placement.clients_beside_core, 0);
    assert_eq!(config.auth.digest_algorithm, DigestAlgorithm::Sha256);
    assert_eq!(config.auth.super_digest.as_deref(), Some("super:abc="));
    assert_eq!(config.connection_throttle.freeze_ms, Some(0));
    assert!((config.connection_throttle.drop_increase - 0.5).abs() < 1e-9);
}

#[test]
fn purge_is_on_by_default_and_zero_or_less_turns_it_off() {
    assert_eq!(config("").snapshots.purge_interval_ms, Some(3_600_000));
    assert_eq!(
        config("autopurge.purgeInterval=24")
            .snapshots
            .purge_interval_ms,
        Some(86_400_000)
    );
    assert_eq!(
        config("autopurge.purgeInterval=1d")
            .snapshots
            .purge_interval_ms,
        Some(86_400_000)
    );
    assert_eq!(
        config("autopurge.purgeInterval=0")
            .snapshots
            .purge_interval_ms,
        None
    );
    assert_eq!(
        config("autopurge.purgeInterval=-1")
            .snapshots
            .purge_interval_ms,
        None
    );
    refused(
        "autopurge.purgeInterval=1w",
        "zoo.cfg:1: autopurge.purgeInterval=1w: its unit must be",
    );
}

#[test]
fn values_that_apache_raises_are_raised_with_a_warning() {
    let text = minimal(
        "snapCount=1\nautopurge.snapRetainCount=1\nconnection_throttle_local_session_weight=9",
    );
    let loaded = load(&text).unwrap();
    assert_eq!(loaded.config.snapshots.txns_min, 2);
    assert_eq!(loaded.config.snapshots.retain_count, 3);
    assert_eq!(loaded.config.connection_throttle.global_weight, 9);
    assert_eq!(loaded.config.connection_throttle.renew_weight, 9);
    assert_eq!(loaded.notices.len(), 4);
    assert!(
        loaded
            .notices
            .iter()
            .all(|notice| notice.weight == Weight::Warning)
    );
}

#[test]
fn segments_hold_the_largest_requests_and_stay_within_bounds() {
    const MIB: u64 = 1 << 20;
    assert_eq!(config("").log.segment_bytes, 64 * MIB);
    assert_eq!(config("preAllocSize=100").log.segment_bytes, 8 * MIB);
    assert_eq!(config("preAllocSize=0").log.segment_bytes, 64 * MIB);
    assert_eq!(config("preAllocSize=9000").log.segment_bytes, 9 * MIB);
    assert_eq!(
        config("txnLogSizeLimitInKb=16384").log.segment_bytes,
        16 * MIB
    );
    assert_eq!(
        config("jute.maxbuffer=50000000").log.segment_bytes,
        382 * MIB
    );
    assert_eq!(
        config("preAllocSize=4294967296").log.segment_bytes,
        4096 * MIB
    );
    assert_eq!(notices("preAllocSize=65536").len(), 0);
    assert!(
        notices("preAllocSize=100")[0]
            .starts_with("zoo.cfg:1: preAllocSize: log segments are 8 MiB")
    );
}

#[test]
fn wrong_values_name_the_line_the_rule_and_the_default() {
    refused(
        "\ntickTime=2s",
        "zoo.cfg:2: tickTime=2s: it must be an integer from 1 to 107374182. Correct the value, or remove the line for \
         the default (3000)",
    );
    refused(
        "tickTime=0",
        "zoo.cfg:1: tickTime=0: it must be an integer from 1",
    );
    refused(
        "extendedTypesEnabled=yes",
        "zoo.cfg:1: extendedTypesEnabled=yes: it must be true or false",
    );
    refused(
        "skipACL=true",
        "zoo.cfg:1: skipACL=true: it must be yes or no",
    );
    refused("electionAlg=1", "zoo.cfg:1: electionAlg=1: it must be 3");
    refused(
        "peerType=arbiter",
        "zoo.cfg:1: peerType=arbiter: it must be participant or observer",
    );
    refused(
        "initLimit=ten",
        "zoo.cfg:1: initLimit=ten: it must be an integer",
    );
    refused(
        "dataLogDir=",
        "zoo.cfg:1: dataLogDir=: it names no directory",
    );
    refused(
        "DigestAuthenticationProvider.superDigest=secret",
        "zoo.cfg:1: DigestAuthenticationProvider.superDigest=...: ",
    );
    refused(
        "minSessionTimeout=70000",
        "zoo.cfg:1: minSessionTimeout (70000 ms) must not be larger than maxSessionTimeout (60000 ms)",
    );
    refused(
        "ringkeeper.cpus=0,0",
        "zoo.cfg:1: ringkeeper.cpus=0,0: core 0 is named twice",
    );
}

#[test]
fn all_problems_are_found_at_once() {
    let problems = load("tickTime=x\nsslQuorum=true\nsnapCount=y\n").unwrap_err();
    assert_eq!(problems.len(), 3, "{problems:#?}");
    let problems = load("clientPortAddress=::1\n").unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[0].starts_with("zoo.cfg: dataDir is not set"));
    assert!(problems[1].starts_with("zoo.cfg:1: clientPortAddress is set but clientPort is not"));
}

#[test]
fn whatever_protects_is_refused_unless_it_asks_for_nothing() {
    for key in keys() {
        let Effect::Refused { unless, .. } = &key.effect else {
            continue;
        };
        let name = key.name.replace('*', "something");
        refused(&format!("{name}=sometimes"), &format!("zoo.cfg:1: {name} "));
        for harmless in *unless {
            assert_eq!(notices(&format!("{name}={harmless}")), [""; 0], "{name}");
        }
    }
    for name in [
        "secureClientPort",
        "ssl.quorum.keyStore.location",
        "zookeeper.ssl.clientAuth",
        "authProvider.1",
        "sasl.serverconfig",
    ] {
        let problems = load(&minimal(&format!("{name}=1"))).unwrap_err();
        assert!(problems[0].contains("zoo.cfg:1: "), "{problems:?}");
    }
}

#[test]
fn whatever_has_no_effect_says_why() {
    for key in keys() {
        let Effect::NoEffect { reason, .. } = &key.effect else {
            continue;
        };
        let name = key.name.replace('*', "something");
        let value = if key.default.contains(' ') || key.default.is_empty() {
            "1"
        } else {
            key.default
        };
        let value = if name == "snapshot.compression.method" {
            "gz"
        } else {
            value
        };
        let found = notices(&format!("{name}={value}"));
        assert_eq!(
            found,
            [format!("zoo.cfg:1: {name} has no effect here: {reason}")]
        );
    }
}

#[test]
fn unknown_keys_are_logged_with_the_known_one_they_resemble() {
    assert_eq!(
        notices("clientport=1\nnonsense=2"),
        [
            "zoo.cfg:1: clientport is not a known key and has no effect; did you mean clientPort?",
            "zoo.cfg:2: nonsense is not a known key and has no effect",
        ]
    );
}

#[test]
fn system_properties_may_have_their_prefix() {
    assert_eq!(config("zookeeper.snapCount=500").snapshots.txns_min, 500);
    let twice = "zookeeper.extendedTypesEnabled=true\nextendedTypesEnabled=false";
    assert!(!config(twice).ensemble.extended_types);
    assert_eq!(
        notices("zookeeper.tickTime=5"),
        [
            "zoo.cfg:1: zookeeper.tickTime is not a known key and has no effect; did you mean tickTime?"
        ]
    );
}

#[test]
fn read_only_mode_makes_isro_answered() {
    assert!(!config("").words.is_allowed("isro"));
    assert!(config("readonlymode.enabled=true").words.is_allowed("isro"));
    assert!(
        config("4lw.commands.whitelist=stat, isro")
            .words
            .is_allowed("isro")
    );
    assert!(notices("4lw.commands.whitelist=stat,what")[0].contains("left out: what"));
}

#[test]
fn relative_directories_are_doubted_unless_they_say_so() {
    let relative = load("dataDir=data\nclientPort=1\n").unwrap();
    assert!(
        relative.notices[0]
            .to_string()
            .starts_with("zoo.cfg:1: dataDir: the path data is relative")
    );
    assert_eq!(load("dataDir=./data\nclientPort=1\n").unwrap().notices, []);
}

mod members {
    use super::*;

    const THREE: &str = "server.1=a:2888:3888\nserver.2=b:2888:3888\nserver.3=c:2888:3888\ninitLimit=5\nsyncLimit=2";

    fn member(id: &str, text: &str) -> Result<Loaded, Vec<String>> {
        let beside = Beside {
            my_id: Some(id.to_owned()),
            dynamic: None,
        };
        load_beside(&minimal(text), &beside)
    }

    #[test]
    fn three_voters_are_an_ensemble_of_which_myid_names_one() {
        let peers = member("2", THREE).unwrap().config.peers.unwrap();
        assert_eq!((peers.id, peers.init_limit, peers.sync_limit), (2, 5, 2));
        assert_eq!((peers.connect_limit, peers.connect_timeout_ms), (5, 5000));
        assert!(!peers.listen_on_all && !peers.several_addresses);
        assert_eq!(peers.membership.members.len(), 3);
        // As QuorumMaj.toString has it.
        assert_eq!(
            peers.membership.text(),
            "server.1=a:2888:3888:participant\nserver.2=b:2888:3888:participant\n\
             server.3=c:2888:3888:participant\nversion=0"
        );
    }

    #[test]
    fn a_member_needs_its_number_and_its_limits() {
        refused(THREE, "zoo.cfg:6: there is no file myid in dataDir");
        let problems = member("4", THREE).unwrap_err();
        assert!(
            problems[0].contains("there is no line server.4"),
            "{problems:?}"
        );
        let problems = member("1", "server.1=a:1:2\nserver.2=b:1:2\nserver.3=c:1:2").unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[1].contains("syncLimit is not set"), "{problems:?}");
        let problems = member("-1", THREE).unwrap_err();
        assert!(
            problems[0].contains("there is no file myid"),
            "{problems:?}"
        );
    }

    #[test]
    fn every_form_of_a_line_is_read() {
        let text = "server.1=a:1:2:PARTICIPANT;2181\nserver.2=[::1]:1:2|b:3:4;[::1]:2182\n\
                    server.3=c:1:2:observer\nserver.10=d:1:2\ninitLimit=5\nsyncLimit=2\n\
                    multiAddress.enabled=true\nconnectToLearnerMasterLimit=7\ncnxTimeout=300\n\
                    quorumListenOnAllIPs=true\nelectionAlg=3\npeerType=observer";
        let loaded = member("3", text).unwrap();
        assert_eq!(loaded.notices, []);
        let peers = loaded.config.peers.unwrap();
        assert_eq!((peers.connect_limit, peers.connect_timeout_ms), (7, 300));
        assert!(peers.listen_on_all && peers.several_addresses);
        assert_eq!(
            peers.membership.text(),
            "server.1=a:1:2:participant;0.0.0.0:2181\n\
             server.2=[::1]:1:2|b:3:4:participant;[::1]:2182\n\
             server.3=c:1:2:observer\nserver.10=d:1:2:participant\nversion=0"
        );
        let at = &peers.membership.members[&2].addresses[1];
        assert_eq!(
            (at.host.as_str(), at.quorum_port, at.election_port),
            ("b", 3, 4)
        );
        assert!(!peers.membership.members[&3].votes);
    }

    #[test]
    fn groups_and_weights_make_a_hierarchy() {
        let groups = format!("{THREE}\ngroup.1=1:2\ngroup.2=3\nweight.2=4");
        let membership = member("1", &groups)
            .unwrap()
            .config
            .peers
            .unwrap()
            .membership;
        assert!(
            membership
                .text()
                .ends_with("group.1=1:2\ngroup.2=3\nweight.1=1\nweight.2=4\nweight.3=1\nversion=0")
        );
        for (rest, expect) in [
            ("group.1=1:2", "server.3 is in no group"),
            (
                "group.1=1:2:3\ngroup.2=3",
                "server 3 is in more than one group",
            ),
            ("group.1=1:2:x", "\"x\" is not a number"),
            ("group.x=1:2:3", "\"x\" is not a number"),
            (
                "group.1=1:2:3\nweight.1=0\nweight.2=0\nweight.3=0",
                "no group has any weight",
            ),
            ("weight.1=2", "server.1 is in no group"),
        ] {
            let problems = member("1", &format!("{THREE}\n{rest}")).unwrap_err();
            assert!(problems[0].contains(expect), "{rest}: {problems:?}");
        }
    }

    #[test]
    fn followers_serve_observers_where_the_file_says() {
        let limit = "zookeeper.observerMaster.sizeLimit";
        for (text, port, bytes) in [
            ("observerMasterPort=7".to_owned(), Some(7), 32 << 20),
            (format!("observerMasterPort=7\n{limit}=9"), Some(7), 9),
            (format!("observerMasterPort=0\n{limit}=0"), None, 32 << 20),
        ] {
            let loaded = member("1", &format!("{THREE}\n{text}")).unwrap();
            assert_eq!(loaded.notices, [], "{text}");
            let peers = loaded.config.peers.unwrap();
            let found = (peers.observer_master_port, peers.observer_queue_bytes);
            assert_eq!(found, (port, bytes), "{text}");
        }
    }

    #[test]
    fn an_observer_that_the_server_lines_let_vote_is_told() {
        let loaded = member("1", &format!("{THREE}\npeerType=observer")).unwrap();
        assert!(loaded.notices[0].to_string().contains("which counts"));
    }

    #[test]
    fn observers_do_not_make_an_ensemble_valid() {
        refused(
            "server.1=a:1:2:observer",
            "zoo.cfg:1: observers without a participant",
        );
        refused(
            "server.1=a:1:2\nserver.2=b:1:2:Observer",
            "zoo.cfg:2: one participant with observers",
        );
    }

    #[test]
    fn without_standalone_mode_one_server_is_an_ensemble_too() {
        let alone = "server.1=a:1:2\nstandaloneEnabled=false\ninitLimit=5\nsyncLimit=2";
        let peers = member("1", alone).unwrap().config.peers.unwrap();
        assert_eq!(peers.membership.members.len(), 1);
        assert!(member("1", &format!("{alone}\nserver.2=b:1:2:observer")).is_ok());
        refused(
            "standaloneEnabled=false",
            "zoo.cfg:1: standaloneEnabled=false asks for an ensemble",
        );
    }

    #[test]
    fn one_server_is_standalone_and_its_line_may_give_the_client_port() {
        let beside = Beside {
            my_id: Some("3".to_owned()),
            dynamic: None,
        };
        let address = |rest: &str| {
            let text = format!("dataDir=/data\n{rest}\n");
            load_beside(&text, &beside).map(|loaded| loaded.config.clients.address.to_string())
        };
        assert_eq!(address("server.3=a:1:2;2191").unwrap(), "0.0.0.0:2191");
        assert_eq!(
            address("server.3=[::1]:1:2:participant;[::1]:2191").unwrap(),
            "[::1]:2191"
        );
        assert_eq!(
            address("server.3=a:1:2|b:1:2;127.0.0.1:2191\nclientPort=2191").unwrap(),
            "127.0.0.1:2191"
        );
        assert_eq!(
            address("server.4=a:1:2;2191\nclientPort=5").unwrap(),
            "0.0.0.0:5"
        );
        assert!(
            address("server.3=a:1:2;2191\nclientPort=2181").unwrap_err()[0]
                .contains("differs from that of server.3")
        );
        assert!(address("server.3=a:1:2;2191\nclientPort=2191\nclientPortAddress=::1").is_err());
    }

    #[test]
    fn malformed_server_lines_are_refused() {
        for (line, expect) in [
            ("server.x=a:1:2", "\"x\" is not the number of a server"),
            ("server.1=a", "\"a\" is not of the form"),
            ("server.1=a:1:b", "\"b\" is not a port"),
            ("server.1=a:1:2:leader", "\"leader\" is neither"),
            ("server.1=a:1:2;3;4", "a secure client port asks for TLS"),
            ("server.1=a:1:2;c:3:4", "\"c:3:4\" is neither port nor"),
            ("server.1=[::1:1:2", "has a [ without its ]"),
            ("server.1=a:1:1", "port 1 is given for both purposes"),
            (
                "server.1=a:1:2:observer|b:1:2:participant",
                "its addresses have different roles",
            ),
        ] {
            let problems = load(&minimal(line)).unwrap_err();
            assert!(
                problems[0].starts_with("zoo.cfg:1: server.") && problems[0].contains(expect),
                "{line}: {problems:?}"
            );
        }
    }

    #[test]
    fn a_dynamic_file_holds_the_members_and_nothing_else() {
        let beside = |text: &str| Beside {
            my_id: None,
            dynamic: Some(RawConfig::parse("zoo.cfg.dynamic", text.as_bytes()).unwrap()),
        };
        let text = minimal("dynamicConfigFile=zoo.cfg.dynamic");
        assert!(load_beside(&text, &beside("server.1=a:1:2")).is_ok());
        let problems = load_beside(&text, &beside("tickTime=1")).unwrap_err();
        assert!(
            problems[0].starts_with("zoo.cfg.dynamic:1: tickTime does not belong"),
            "{problems:?}"
        );
        let version = |name: &str, rest: &str| {
            let text = minimal(&format!(
                "dynamicConfigFile={name}\ninitLimit=5\nsyncLimit=2"
            ));
            let lines = format!("server.1=a:1:2\nserver.2=b:1:2\n{rest}");
            let beside = Beside {
                my_id: Some("1".to_owned()),
                ..beside(&lines)
            };
            load_beside(&text, &beside).map(|it| it.config.peers.unwrap().membership.version)
        };
        assert_eq!(version("zoo.cfg.dynamic", "").unwrap(), 0);
        assert_eq!(
            version("zoo.cfg.dynamic.10000000a", "").unwrap(),
            0x1_0000_000a
        );
        assert_eq!(version("zoo.cfg.dynamic", "version=1f").unwrap(), 0x1f);
        assert!(version("zoo.cfg.dynamic", "version=x").is_err());
        let text = minimal("dynamicConfigFile=zoo.cfg.dynamic\nserver.1=a:1:2\ngroup.1=1");
        assert_eq!(load_beside(&text, &beside("")).unwrap_err().len(), 2);
    }

    #[test]
    fn a_myid_that_is_no_number_is_refused() {
        let beside = Beside {
            my_id: Some("one\n".to_owned()),
            dynamic: None,
        };
        let problems = load_beside(&minimal(""), &beside).unwrap_err();
        assert!(
            problems[0].contains("the file myid in dataDir says \"one\""),
            "{problems:?}"
        );
    }
}
