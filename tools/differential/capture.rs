//! Records what the oracle answers, as golden bytes for the codec's own tests.

use std::path::Path;

use anyhow::Result;

use crate::servers::Product;

pub(crate) fn capture(_oracle: &Product, _directory: &Path) -> Result<usize> {
    Ok(0)
}
