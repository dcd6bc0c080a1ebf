//! (next)
use crate::lab::Lab;
pub(crate) fn run(_lab: &Lab, _kubeconfig: Option<String>) -> anyhow::Result<()> {
    Ok(())
}
