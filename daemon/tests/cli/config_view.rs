//! `tpx config view`: the merged configuration, and where each value comes from.

use serde_json::Value;

use crate::laptop::Laptop;

const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: https://192.0.2.1
    extensions:
    - name: tpx.io
      extension:
        dns: {lookupTimeout: 2s, excludes: [api.example.com]}
        routing: {autoResolveConflicts: false}
- name: broken
  cluster:
    server: https://192.0.2.2
    extensions:
    - name: tpx.io
      extension: {routing: {autoResolve: false}}
contexts:
- {name: lab, context: {cluster: lab, user: me}}
- {name: broken, context: {cluster: broken, user: me}}
users: [{name: me, user: {}}]
current-context: lab
";

fn view(laptop: &Laptop, arguments: &[&str]) -> Value {
    let ended = laptop.run(&[&["config", "view", "--client-only", "--format", "json"], arguments].concat());
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

#[test]
fn the_file_is_above_kubeconfig_and_kubeconfig_above_the_defaults() {
    let laptop = Laptop::new();
    laptop.write("kubeconfig", KUBECONFIG);
    let path = laptop.config("dns:\n  lookupTimeout: 1m\nrouting:\n  virtualSubnet: 100.10.20.0/24\n");
    let view = view(&laptop, &[]);
    let file = path.display();
    let kubeconfig = "kubeconfig (extension tpx.io of cluster lab)";
    for (key, value, source) in [
        ("dns.lookupTimeout", Value::from("1m"), format!("{file}:2:18")),
        ("dns.excludes", Value::from(vec!["api.example.com"]), kubeconfig.into()),
        ("routing.autoResolveConflicts", Value::from(false), kubeconfig.into()),
        ("routing.virtualSubnet", Value::from(vec!["100.10.20.0/24"]), format!("{file}:4:18")),
        ("routing.vnat", Value::from(Vec::<String>::new()), "default".into()),
        ("datapath", Value::from("auto"), "default".into()),
    ] {
        let pointer = format!("/config/{}", key.replace('.', "/"));
        assert_eq!(view.pointer(&pointer), Some(&value), "{key} in {view}");
        assert_eq!(view["sources"][key], source, "{key}");
    }
    assert_eq!(view["file"], file.to_string());
}

#[test]
fn text_names_the_source_of_every_key() {
    let laptop = Laptop::new();
    let path = laptop.write("other.yml", "logLevels: {userDaemon: debug}\n");
    let path = path.display().to_string();
    let ended = laptop.run(&["--config", &path, "config", "view", "--client-only"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let words = |key: &str| {
        let line = ended.stdout.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(words("logLevels.userDaemon"), ["logLevels.userDaemon", "debug", &format!("{path}:1:25")]);
    assert_eq!(words("logLevels.rootDaemon"), ["logLevels.rootDaemon", "info", "default"]);
    assert_eq!(words("KEY"), ["KEY", "VALUE", "FROM"]);
}

#[test]
fn what_is_printed_can_be_the_file() {
    let laptop = Laptop::new();
    laptop.write("kubeconfig", KUBECONFIG);
    let first = view(&laptop, &[]);
    let ended = laptop.run(&["config", "view", "--client-only", "--format", "yaml"]);
    let part = ended.stdout.split("sources:").next().unwrap().strip_prefix("config:\n").unwrap();
    let unindented: Vec<&str> = part.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect();
    laptop.config(&unindented.join("\n"));
    std::fs::remove_file(laptop.path("kubeconfig")).unwrap();
    assert_eq!(view(&laptop, &[])["config"], first["config"], "{ended:?}");
}

#[test]
fn a_typo_in_kubeconfig_names_the_cluster() {
    let laptop = Laptop::new();
    laptop.write("kubeconfig", KUBECONFIG);
    let ended = laptop.run(&["config", "view", "--client-only", "--context", "broken"]);
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (
            2,
            "error: kubeconfig (extension tpx.io of cluster broken): routing.autoResolve: unknown key; \
             did you mean routing.autoResolveConflicts?\n"
        )
    );
}

#[test]
fn without_a_connection_the_clusters_part_is_missed() {
    let ended = Laptop::new().run(&["config", "view"]);
    assert_eq!(ended.code, 3);
    assert!(ended.stderr.contains("not connected") && ended.stderr.contains("--client-only"), "{ended:?}");
}
