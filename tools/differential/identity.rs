//! Who a session is: users with passwords, and the session passwords that servers derive.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ringkeeper_proto::connect::PASSWORD_LEN;
use sha1::{Digest, Sha1};

/// The id that the scheme `digest` makes of a user and a password.
pub(crate) fn digest_id(user: &str, password: &str) -> String {
    let digest = Sha1::digest(format!("{user}:{password}"));
    format!("{user}:{}", STANDARD.encode(digest))
}

/// The password of a session: 16 bytes of `java.util.Random` with the id and a secret as the seed.
// ZK: ZooKeeperServer.generatePasswd; any member of a mixed ensemble may have to check it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the generator's own arithmetic: the high bits of a 48-bit state"
)]
pub(crate) fn session_password(session: i64) -> [u8; PASSWORD_LEN] {
    const SECRET: i64 = 0xB341_5C00;
    const MULTIPLIER: u64 = 0x5_DEEC_E66D;
    const MASK: u64 = (1 << 48) - 1;
    let mut state = ((session ^ SECRET) as u64 ^ MULTIPLIER) & MASK;
    let mut password = [0; PASSWORD_LEN];
    for bytes in password.chunks_mut(4) {
        state = state.wrapping_mul(MULTIPLIER).wrapping_add(0xB) & MASK;
        let number = (state >> 16) as u32;
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = (number >> (8 * place)) as u8;
        }
    }
    password
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_documented_one() {
        // The example of ZooKeeper's administrator's guide for `super:test` users.
        assert_eq!(
            digest_id("super", "test"),
            "super:D/InIHSb7yEEbrWz8b9l71RjZJU="
        );
    }
}
