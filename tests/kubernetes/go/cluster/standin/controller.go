package main

import (
	"context"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

type controller struct {
	csi.UnimplementedControllerServer
	store *store
}

func (*controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	var all []*csi.ControllerServiceCapability
	for _, kind := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		all = append(all, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: kind},
		}})
	}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: all}, nil
}

func (c *controller) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	target, err := folder(c.store.volumes(), request.Name)
	if err != nil {
		return nil, err
	}
	for _, capability := range request.VolumeCapabilities {
		if capability.GetBlock() != nil {
			return nil, status.Error(codes.InvalidArgument, "this driver has no block volumes")
		}
	}
	source := ""
	if snapshot := request.VolumeContentSource.GetSnapshot(); snapshot != nil {
		source, err = folder(c.store.snapshots(), snapshot.SnapshotId)
	} else if volume := request.VolumeContentSource.GetVolume(); volume != nil {
		source, err = folder(c.store.volumes(), volume.VolumeId)
	}
	if err != nil {
		return nil, err
	}
	if source == "" {
		err = os.MkdirAll(target, 0o777)
	} else if _, absent := os.Stat(source); absent != nil {
		return nil, status.Errorf(codes.NotFound, "%s is not there", source)
	} else {
		err = copyTree(source, target)
	}
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: request.Name, CapacityBytes: request.CapacityRange.GetRequiredBytes(), ContentSource: request.VolumeContentSource,
	}}, nil
}

func (c *controller) DeleteVolume(_ context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	target, err := folder(c.store.volumes(), request.VolumeId)
	if err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, os.RemoveAll(target)
}

func (c *controller) ControllerPublishVolume(_ context.Context, request *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	target, err := folder(c.store.volumes(), request.VolumeId)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(target); err != nil {
		return nil, status.Errorf(codes.NotFound, "volume %s is not there", request.VolumeId)
	}
	return &csi.ControllerPublishVolumeResponse{}, nil
}

func (*controller) ControllerUnpublishVolume(context.Context, *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

func (*controller) ControllerExpandVolume(_ context.Context, request *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: request.CapacityRange.GetRequiredBytes(), NodeExpansionRequired: true}, nil
}

func (c *controller) CreateSnapshot(_ context.Context, request *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	source, err := folder(c.store.volumes(), request.SourceVolumeId)
	if err != nil {
		return nil, err
	}
	target, err := folder(c.store.snapshots(), request.Name)
	if err != nil {
		return nil, err
	}
	if err := copyTree(source, target); err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{
		SnapshotId: request.Name, SourceVolumeId: request.SourceVolumeId, CreationTime: timestamppb.Now(), ReadyToUse: true,
	}}, nil
}

func (c *controller) DeleteSnapshot(_ context.Context, request *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	target, err := folder(c.store.snapshots(), request.SnapshotId)
	if err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, os.RemoveAll(target)
}
