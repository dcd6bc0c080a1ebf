//! The privileged half of the datapath on the real kernel.

mod app;
mod bridge;
mod callers;
mod container_scopes;
mod containers;
mod datagrams;
mod floor;
mod names;
mod neighbour;
mod owner;
mod policy;
mod relay;
mod remains;
mod resolved;
mod roads;
mod routes;
mod scale;
mod scopes;
mod translations;
mod trees;
mod tun;

use tpx_netlab::Case;

const CASES: &[Case] = &[
    ("loads", roads::loads),
    ("without_features_the_floor_carries", roads::features),
    ("tcp_v4_v6_and_mapped_reach", roads::reach),
    ("tcp_refused_unreachable_and_silent", roads::failures),
    ("tcp_odd_syns_reach", roads::odd_syns),
    ("tcp_500_at_once", roads::many),
    ("marks_keep_foreign_bits_and_come_off", roads::marks),
    ("device_binding_is_undone", roads::bound_to_device),
    ("exceptions_stay_outside", roads::exceptions),
    ("stray_syns_to_the_listener_are_dropped", roads::stray),
    ("foreign_netns_is_untouched", scopes::foreign_netns),
    ("other_machines_are_untouched", scopes::other_machines),
    ("outside_the_cgroup_is_untouched", scopes::outside),
    ("bypassed_sockets_are_untouched", scopes::bypass),
    ("workstation_is_the_visible_tree", scopes::workstation),
    ("trees_and_the_workstation_in_three_clusters", trees::clusters),
    ("trees_with_bound_sources", trees::bound_sources),
    ("trees_nested", trees::nested),
    ("trees_take_older_sockets", trees::older_sockets),
    ("trees_beside_a_vpn", trees::beside_a_vpn),
    ("trees_50_leave_nothing", trees::fifty),
    ("trees_of_killed_daemons_are_swept", trees::swept),
    ("trees_stay_trees", trees::kinds),
    ("virtual_tcp_v4_v6_and_mapped", translations::reach),
    ("virtual_addresses_come_and_go", translations::come_and_go),
    ("connections_have_their_process", callers::short),
    ("connections_have_their_process_in_every_form", callers::odd),
    ("connections_without_their_process", callers::left_out),
    ("policy_denies_tcp_and_udp", policy::denies),
    ("policy_says_what_it_is_told", policy::refuses),
    ("policy_looks_behind_virtual_addresses", policy::behind),
    ("policy_comes_and_goes", policy::come_and_go),
    ("policy_is_for_the_tunnel_only", policy::tunnel_only),
    ("hidden_subnets_go_where_the_host_leads", translations::hidden),
    ("udp_20000_datagrams_400_destinations_3_sockets", datagrams::many),
    ("udp_connected_v4_v6_and_mapped", datagrams::connected),
    ("udp_unconnected_v6_and_mapped", datagrams::unconnected),
    ("udp_refused_unreachable_and_too_big", datagrams::errors),
    ("udp_60_kilobytes", datagrams::large),
    ("udp_segmented_by_the_kernel", datagrams::segmented),
    ("udp_more_destinations_than_fit", datagrams::full),
    ("udp_from_bound_sources", datagrams::bound),
    ("udp_virtual_and_names", datagrams::virtual_addresses),
    ("udp_left_to_the_floor", datagrams::left),
    ("udp_other_machines_cannot_enter", datagrams::other_machines),
    ("dns_udp_connected", names::udp_connected),
    ("dns_udp_unconnected_many_servers", names::udp_unconnected),
    ("dns_udp_mapped", names::udp_mapped),
    ("dns_tcp", names::tcp),
    ("dns_leaves_others_alone", names::others),
    ("floor_routes_and_rules", floor::routes_and_rules),
    ("floor_packets_come_and_go", floor::packets),
    ("floor_hidden_subnets_keep_open_sockets", floor::hidden),
    ("floor_of_a_tree_is_for_marked_packets", floor::tree),
    ("floor_beside_a_vpn_that_routes_by_mark", floor::wg_quick),
    ("containers_reach_the_cluster", containers::reach),
    ("containers_reach_it_by_clsact", containers::reach_by_clsact),
    ("containers_ask_for_names", containers::names),
    ("containers_do_the_rest_as_ever", containers::untouched),
    ("containers_on_bridges_that_come_and_go", containers::come_and_go),
    ("containers_with_foreign_addresses", containers::foreign),
    ("containers_with_few_capabilities", containers::few_capabilities),
    ("containers_kill_9_by_clsact", containers::killed),
    ("containers_as_a_scope", container_scopes::beside_the_workstation),
    ("containers_as_a_scope_by_clsact", container_scopes::by_clsact),
    ("containers_in_two_scopes", container_scopes::two),
    ("routes_as_without_tpx", routes::without_tpx),
    ("routes_are_followed", routes::followed),
    ("resolved_is_told", resolved::told),
    ("resolved_may_be_absent", resolved::absent),
    ("resolved_is_told_of_many_domains", resolved::many),
    ("tun_road_answers_names", tun::names),
    ("tun_road_forwards_outside", tun::forwards),
    ("tun_road_yields_to_a_name_server_of_the_host", tun::own_name_server),
    ("tun_road_kill_9", tun::killed),
    ("apply_again_changes_the_difference", remains::again),
    ("apply_again_mends_what_was_removed", remains::mended),
    ("apply_again_after_the_device_was_deleted", remains::device_deleted),
    ("scope_whose_cgroup_is_removed", remains::cgroup_removed),
    ("apply_again_that_fails_goes_back", remains::goes_back),
    ("apply_ten_thousand_subnets", scale::ten_thousand),
    ("apply_that_fails_leaves_nothing", remains::failing),
    ("apply_out_of_files_leaves_nothing", remains::out_of_files),
    ("revert_while_the_files_are_out", remains::files_are_out),
    ("drop_removes_all", remains::dropped),
    ("kill_9_leaves_nothing", remains::killed),
    ("few_capabilities_suffice", remains::few_capabilities),
    ("host_without_ipv6", remains::without_ipv6),
];

fn main() -> std::process::ExitCode {
    if callers::asked() {
        return callers::run();
    }
    if owner::asked() {
        return owner::run();
    }
    tpx_netlab::run(CASES)
}
