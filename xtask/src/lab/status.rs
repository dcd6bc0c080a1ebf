//! `lab status`: whether it is up, and every name and address in it that a test or a person may want.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};

use super::config::*;
use super::{kube, node, state};

/// Prints it and returns 0 when the lab is up, 1 when it is not.
pub(crate) fn print(lab: &Lab, as_json: bool) -> Result<i32> {
    let up = state::is_up(lab);
    let pid = |part| state::pid(lab, part).map_or(Value::Null, Value::from);
    let has = |part, what| if lab.parts().contains(&part) { what } else { Value::Null };
    let facts = json!({
        "name": lab.name,
        "up": up,
        "node": {"pid": pid(Part::Node), "name": lab.cluster().node, "addresses": [NODE_IP, NODE_IP6], "path": node::path(), "kubeconfig": lab.pki().join("admin.kubeconfig")},
        "laptop": has(Part::Laptop, json!({"pid": pid(Part::Laptop), "addresses": [LAPTOP_IP, LAPTOP_IP6, lab.cluster().laptop_ip], "users": USERS.map(|(name, _)| name), "kubeconfig": format!("{RUN_LAB}/kubeconfig"), "expired_kubeconfig": format!("{RUN_LAB}/kubeconfig-expired")})),
        "internet": has(Part::Internet, json!({"pid": pid(Part::Internet), "name_server": NAME_SERVER, "web": [WEB_IP, WEB_IP6], "query_log": lab.query_log()})),
        "cluster": {"context": lab.cluster().context, "api": format!("https://{}:{API_PORT}", lab.cluster().api_ip), "pods": [NODE_POD_CIDR, NODE_POD_CIDR6], "services": [SERVICE_CIDR, SERVICE_CIDR6], "dns": DNS_SERVICE_IP},
        "second": lab.second().ok().filter(state::is_up).map(|second| second.name),
        "cgroup": lab.cgroup(),
        "logs": lab.state().join("log"),
    });
    let text = if as_json {
        serde_json::to_string_pretty(&facts)?
    } else if up {
        for_people(lab, &facts)?
    } else {
        format!("lab {}: not up; bring it up: cargo xtask lab up", lab.name)
    };
    // Whoever reads this may have had enough of it.
    writeln!(std::io::stdout(), "{}", text.trim_end()).ok();
    Ok(i32::from(!up))
}

fn for_people(lab: &Lab, facts: &Value) -> Result<String> {
    let second = facts["second"].as_str().map(|name| format!(", and its second cluster, {name}"));
    let mut text = format!("lab {}: up{}\n", lab.name, second.unwrap_or_default());
    for (part, what) in facts.as_object().into_iter().flatten().filter(|(_, what)| what.is_object()) {
        text += &format!("{part}:\n");
        for (name, value) in what.as_object().into_iter().flatten() {
            text += &format!("  {name}: {}\n", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
    Ok(text + &kube::kubectl(lab, &["get", "pods,services", "--all-namespaces", "--output=wide"])?)
}
