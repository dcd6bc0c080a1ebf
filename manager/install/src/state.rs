//! How a manager's pod is doing, in words, pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// The state of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// It answers.
    Ready,
    /// It is on its way.
    Starting(String),
    /// It will not start until somebody does something.
    Stuck(String),
    /// It is going away.
    Leaving,
}

/// Reasons of a waiting container that do not pass by themselves.
const STUCK: [&str; 8] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

pub(crate) fn state(pod: &Pod) -> State {
    if pod.metadata.deletion_timestamp.is_some() {
        return State::Leaving;
    }
    let Some(status) = &pod.status else { return State::Starting("not scheduled yet".to_owned()) };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let condition = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    if condition("Ready").is_some_and(|ready| ready.status == "True") {
        return State::Ready;
    }
    if let Some(scheduled) = condition("PodScheduled")
        && scheduled.status == "False"
    {
        let words = scheduled.message.as_deref().unwrap_or("no node takes it");
        return State::Stuck(format!("it cannot be scheduled: {words}"));
    }
    for container in status.container_statuses.iter().flatten() {
        if let Some(state) = container_state(container) {
            return state;
        }
    }
    match status.phase.as_deref() {
        Some("Failed") => State::Stuck(status.message.clone().unwrap_or_else(|| "the pod failed".to_owned())),
        Some("Running") => State::Starting("running, not ready yet".to_owned()),
        phase => State::Starting(phase.unwrap_or("Pending").to_lowercase()),
    }
}

fn container_state(container: &ContainerStatus) -> Option<State> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        let message = waiting.message.as_deref().unwrap_or_default();
        if !STUCK.contains(&reason) {
            return Some(State::Starting(reason.to_owned()));
        }
        let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let exit = last.map(|last| format!(" (exit code {})", last.exit_code)).unwrap_or_default();
        let separator = if message.is_empty() { "" } else { ": " };
        return Some(State::Stuck(format!("{reason}{separator}{message}{exit}")));
    }
    let terminated = state.terminated.as_ref()?;
    Some(State::Stuck(format!("its process ended with exit code {}", terminated.exit_code)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(status: Value) -> State {
        state(&serde_json::from_value(json!({ "metadata": {}, "status": status })).unwrap())
    }

    #[test]
    fn readiness() {
        assert_eq!(of(json!({ "conditions": [{ "type": "Ready", "status": "True" }] })), State::Ready);
        assert_eq!(of(json!({ "phase": "Pending" })), State::Starting("pending".to_owned()));
        let leaving = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
        assert_eq!(state(&serde_json::from_value(leaving).unwrap()), State::Leaving);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let waiting = |reason: &str, message: &str| {
            of(json!({ "phase": "Pending", "containerStatuses": [{
                "name": "m", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": reason, "message": message } },
                "lastState": { "terminated": { "exitCode": 3 } },
            }] }))
        };
        assert_eq!(waiting("ContainerCreating", ""), State::Starting("ContainerCreating".to_owned()));
        let pull = waiting("ErrImagePull", "not found");
        assert_eq!(pull, State::Stuck("ErrImagePull: not found (exit code 3)".to_owned()));
        let unschedulable = of(json!({ "phase": "Pending", "conditions": [
            { "type": "PodScheduled", "status": "False", "message": "0/1 nodes are available" },
        ] }));
        assert_eq!(unschedulable, State::Stuck("it cannot be scheduled: 0/1 nodes are available".to_owned()));
    }
}
