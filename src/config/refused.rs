//! The keys that ask for protection, or for a feature whose absence would be noticed too late: the server does not start
//! with them until they are in force.

use crate::table::{Effect, Key, Owner};

const TLS: &str = "asks for TLS, which is not implemented yet";
const TLS_REMEDY: &str =
    "Remove the line, and keep the port to trusted networks or behind a TLS proxy";
const SASL: &str = "asks for SASL, which is not implemented yet";
const SASL_REMEDY: &str =
    "Remove the line if clients may connect without it; the scheme digest is there";
const PEER_REMEDY: &str = "Remove the line, and keep servers that need it on Apache ZooKeeper";
const PROVIDER: &str = "names a class of Java, which cannot be run here";
const PROVIDER_REMEDY: &str =
    "Remove the line; the schemes world, ip, digest and super are built in";
const ENFORCE: &str =
    "asks that sessions without authentication be refused, which is not implemented yet";
const ENFORCE_REMEDY: &str =
    "Remove the line if ACLs are enough, or keep this server on Apache ZooKeeper";
const FALSE: &[&str] = &["false"];

/// Rows in the order of the documentation.
pub(crate) const KEYS: &[Key] = &[
    row(
        "secureClientPort",
        Owner::File,
        "",
        "TCP port for clients with TLS",
        &[],
        TLS,
        TLS_REMEDY,
    ),
    row(
        "secureClientPortAddress",
        Owner::File,
        "",
        "Interface for clients with TLS",
        &[],
        TLS,
        TLS_REMEDY,
    ),
    row(
        "client.portUnification",
        Owner::Property,
        "false",
        "Takes TLS and plain clients on one port",
        FALSE,
        TLS,
        TLS_REMEDY,
    ),
    row(
        "client.certReload",
        Owner::Property,
        "false",
        "Watches certificate files for changes",
        FALSE,
        TLS,
        TLS_REMEDY,
    ),
    row(
        "ssl.*",
        Owner::Property,
        "",
        "Keys and rules of TLS, for clients and (`ssl.quorum.`) for peers",
        &[],
        TLS,
        TLS_REMEDY,
    ),
    row(
        "sslQuorum",
        Owner::File,
        "false",
        "TLS between peers",
        FALSE,
        TLS,
        PEER_REMEDY,
    ),
    row(
        "portUnification",
        Owner::File,
        "false",
        "Takes TLS and plain peers on one port",
        FALSE,
        TLS,
        PEER_REMEDY,
    ),
    row(
        "sslQuorumReloadCertFiles",
        Owner::File,
        "false",
        "Watches certificate files for changes",
        FALSE,
        TLS,
        PEER_REMEDY,
    ),
    row(
        "authProvider.*",
        Owner::Property,
        "",
        "Class of an authentication provider",
        &[],
        PROVIDER,
        PROVIDER_REMEDY,
    ),
    row(
        "enforce.auth.enabled",
        Owner::Property,
        "false",
        "Sessions must authenticate by one of the schemes",
        FALSE,
        ENFORCE,
        ENFORCE_REMEDY,
    ),
    row(
        "enforce.auth.schemes",
        Owner::Property,
        "",
        "The schemes of which one must be used",
        &[],
        ENFORCE,
        ENFORCE_REMEDY,
    ),
    row(
        "sessionRequireClientSASLAuth",
        Owner::Property,
        "false",
        "Sessions must authenticate by SASL",
        FALSE,
        SASL,
        ENFORCE_REMEDY,
    ),
    row(
        "sasl.*",
        Owner::Property,
        "",
        "SASL of clients",
        &[],
        SASL,
        SASL_REMEDY,
    ),
    row(
        "java.security.auth.login.config",
        Owner::Property,
        "",
        "File with JAAS sections, which turns SASL on",
        &[],
        SASL,
        SASL_REMEDY,
    ),
    row(
        "requireKerberosConfig",
        Owner::Property,
        "false",
        "Refuses to start without a Kerberos configuration",
        FALSE,
        SASL,
        SASL_REMEDY,
    ),
    row(
        "quorum.auth.enableSasl",
        Owner::File,
        "false",
        "SASL between peers",
        FALSE,
        SASL,
        PEER_REMEDY,
    ),
    row(
        "quorum.auth.learnerRequireSasl",
        Owner::File,
        "false",
        "Peers must offer SASL",
        FALSE,
        SASL,
        PEER_REMEDY,
    ),
    row(
        "quorum.auth.serverRequireSasl",
        Owner::File,
        "false",
        "Peers must use SASL",
        FALSE,
        SASL,
        PEER_REMEDY,
    ),
    row(
        "IPAuthenticationProvider.usexforwardedfor",
        Owner::Property,
        "false",
        "Takes a client's address from an HTTP header",
        FALSE,
        "asks to trust an HTTP header for addresses, and there is no HTTP server",
        "Remove the line; the scheme ip goes by the address of the connection",
    ),
];

const fn row(
    name: &'static str,
    owner: Owner,
    default: &'static str,
    about: &'static str,
    unless: &'static [&'static str],
    why: &'static str,
    remedy: &'static str,
) -> Key {
    Key {
        name,
        owner,
        default,
        about,
        effect: Effect::Refused {
            unless,
            why,
            remedy,
        },
    }
}
